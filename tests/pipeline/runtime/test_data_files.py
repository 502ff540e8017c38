"""Versions of data files: of those that a dataset reads, and only of local ones."""

import pytest

from tests.support.tiny_datasets import chat, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.runtime.data_files import current_version, watched
from tokenuq_pipeline.runtime.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(home=str(tmp_path / "store"))


def spec(path, name: str = "d", **more) -> DatasetSpec:
    return DatasetSpec(**{"name": name, "format": "messages", "path": str(path), "sizes": {"train": 1}, **more})


def test_a_version_depends_on_the_files_that_are_read(tmp_path, store):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write_lines(folder / name, [chat(name)])
    whole, part = spec(folder, "whole", sizes={"train": 1, "test": 1}), spec(folder, "part")
    before = [current_version(one, store) for one in (whole, part)]
    assert len(set(before)) == 2 and before == [current_version(one, store) for one in (whole, part)]
    write_lines(folder / "test.jsonl", [chat("other")])
    (folder / "notes.txt").write_text("x")
    assert current_version(part, store) == before[1] and current_version(whole, store) != before[0]


def test_there_is_no_version_without_files(tmp_path, store):
    assert current_version(spec(tmp_path / "none.jsonl"), store) is None
    assert current_version(spec("${TOKENUQ_NOWHERE}/a.jsonl"), store) is None


def test_addresses_are_not_watched(tmp_path):
    datasets = {"far": spec("s3://bucket/rows", "far"), "near": spec(tmp_path, "near")}
    config = Config(models={}, datasets=datasets, studies={}, ablations={})
    assert watched(config) == {"near": str(tmp_path)}
