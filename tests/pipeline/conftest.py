"""Toy studies that are materialised once per test process. Tests that change one take a copy."""

import pytest

from tests.support.toy_pipeline import Toy, config_with, toy_config


@pytest.fixture(scope="session")
def made_study(tmp_path_factory) -> Toy:
    """The study of `toy_config()`, materialised. Not to be changed."""
    toy = Toy(tmp_path_factory.mktemp("made_study"))
    toy.materialise(toy_config())
    return toy


@pytest.fixture(scope="session")
def made_study_with_file(tmp_path_factory) -> Toy:
    """The study of `config_with(toy.folder.parent)`, whose dataset `extra` has a data file, materialised."""
    folder = tmp_path_factory.mktemp("made_study_with_file")
    toy = Toy(folder / "toy")
    toy.materialise(config_with(folder))
    return toy
