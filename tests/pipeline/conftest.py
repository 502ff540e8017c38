"""Toy studies that are materialised once per test process, and an S3 service. Tests that change a study take a copy."""

import pytest

from tests.support.s3_fixtures import machine, s3_proxy, s3_service, store_address
from tests.support.toy_pipeline import Toy, config_with, toy_config

__all__ = ["machine", "made_study", "made_study_with_file", "s3_proxy", "s3_service", "store_address"]


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
