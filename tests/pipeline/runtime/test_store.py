"""The store publishes whole or not at all, and knows dead staging folders from live ones."""

import os
import subprocess
import sys

import pytest

from tokenuq_pipeline.runtime.processes import is_alive, process_name
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def staged(store, content):
    folder = store.home / ".staging" / "work" / content
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / name).write_text(content)
    return folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_places_are_hive_partitions():
    assert table_path("token_losses", study="s") == "token_losses/study=s"
    assert table_path("selections", study="s", ablation="a") == "selections/study=s/ablation=a"
    assert table_path("examples", dataset="d") == "examples/dataset=d"
    assert partition_path("plots", study="s", stage="x") == "plots/study=s/stage=x"


def test_publish_replaces_all_of_the_old(store):
    for text in ("first", "second"):
        folder = staged(store, text)
        final = store.publish(folder, "table/study=s")
        assert final == store.path("table/study=s") and content(final) == {"one": text, "two": text}
        assert not folder.exists()
    assert os.listdir(store.home / ".staging" / "work") == []


def test_manifest_says_what_is_whole(store):
    assert store.read_manifest("s/a") is None
    store.publish(staged(store, "x"), "t")
    store.write_manifest(
        "s/a",
        data_version="dv",
        code_version="1-x",
        fields={"k": 1},
        spec_hash="h",
        outputs={"t": "t"},
        inputs={"s/b": "dv2"},
        metrics={"m": 1.5},
    )
    manifest = store.read_manifest("s/a")
    assert manifest["data_version"] == "dv" and manifest["input_data_versions"] == {"s/b": "dv2"}
    assert manifest["fields"] == {"k": 1} and manifest["metrics"] == {"m": 1.5}
    # SHA-256 of the letter x, from the standard's own test tools.
    assert manifest["files"][0] == {
        "path": "t/one",
        "bytes": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    assert [file["path"] for file in manifest["files"]] == ["t/one", "t/two"]
    assert store.is_complete("s/a")
    store.path("t/two").unlink()
    assert not store.is_complete("s/a")
    store.forget("s/a")
    assert store.read_manifest("s/a") is None


def test_staging_is_gone_at_the_end_even_of_a_failure(store):
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list((store.home / ".staging").iterdir()) == []


def test_what_dead_processes_left_is_cleaned_and_what_live_ones_use_stays(store):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(child.pid)
    folder = store.home / ".staging" / f"{name}-abc"
    folder.mkdir(parents=True)
    (store.home / ".staging" / f"{os.getpid()}-1-reused").mkdir()
    assert is_alive(name)
    assert store.clean_staging() == [f"{os.getpid()}-1-reused"]
    child.communicate(b"\n")
    assert not is_alive(name)
    assert store.clean_staging() == [folder.name]
