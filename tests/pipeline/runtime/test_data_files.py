"""Versions of data files: of those that a dataset reads, and only of local ones."""

import pytest

from tests.support.tiny_datasets import chat, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.runtime.data_files import current_version, watched
from tokenuq_pipeline.runtime.fingerprints import Fingerprints
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


DAMAGES = {
    "empty": (b"", "is empty"),
    "truncated": (b'{"d: ', "is not JSON"),
    "not UTF-8": (b"\xff", "is not UTF-8"),
    "a list": (b"[]", "does not hold one object"),
    "null": (b"null", "does not hold one object"),
    "a number": (b'{"d": 3}', "'d' has no signature"),
    "an entry of null": (b'{"d": null}', "'d' has no signature"),
    "a fingerprint of a number": (b'{"d": {"signature": [], "fingerprint": 3}}', "'d' has no fingerprint"),
    "NaN": (b'{"d": NaN}', "is not JSON"),
    "deep": (b"[" * 100_000, "is nested too deeply"),
    "a key twice": (b'{"d": 1, "d": 2}', "is not JSON: the key 'd' is given twice"),
}


@pytest.mark.parametrize("content, says", DAMAGES.values(), ids=DAMAGES)
def test_damaged_fingerprints_are_named_ignored_and_written_again(tmp_path, store, capsys, content, says):
    write_lines(tmp_path / "d.jsonl", [chat("a")])
    version = current_version(spec(tmp_path / "d.jsonl"), store)
    file = store.home / ".fingerprints.json"
    file.write_bytes(content)
    assert Fingerprints(store.home).damage().startswith(f"{file}: {says}")
    for _ in range(2):
        assert current_version(spec(tmp_path / "d.jsonl"), store) == version
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {file}: {says}") and err.count("\n") == 1 and "`tokenuq verify --forget`" in err
    assert Fingerprints(store.home).damage() is None


def test_a_folder_in_the_place_of_the_fingerprints_is_named(tmp_path, store, capsys):
    write_lines(tmp_path / "d.jsonl", [chat("a")])
    (store.home / ".fingerprints.json").mkdir(parents=True)
    assert current_version(spec(tmp_path / "d.jsonl"), store) is not None
    assert "is a folder, not a file; it is ignored" in capsys.readouterr().err
