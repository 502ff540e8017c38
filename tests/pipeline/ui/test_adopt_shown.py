"""Dagster's records at the start of the UI: those of the store that it shows."""

import pytest

from tests.support.toy_pipeline import config_with
from tokenuq_pipeline.ui import adopt_shown


@pytest.fixture
def said():
    return []


def test_an_empty_store_needs_no_configuration(tmp_path, said, monkeypatch):
    monkeypatch.setattr(adopt_shown, "load_config", None)
    adopt_shown.adopt_shown(None, tmp_path, said.append)
    assert said == []


@pytest.mark.slow
def test_a_new_dagster_home_is_told_of_the_store_once(made_study_with_file, tmp_path, said, monkeypatch):
    toy = made_study_with_file.copy(tmp_path / "toy")
    (toy.folder / "dagster_home").rename(tmp_path / "lost")
    config = config_with(made_study_with_file.folder.parent)
    monkeypatch.setattr(adopt_shown, "load_config", lambda *folders: config)
    with toy.instance() as instance:
        for _ in range(2):
            adopt_shown.adopt_shown(instance, toy.store.home, said.append)
    assert said == ["17 assets of the store adopted into Dagster's records"]
