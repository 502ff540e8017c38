"""The store publishes completely or not at all, and deletes the staging folders of dead processes only."""

import hashlib
import json
import os
import stat
import subprocess
import sys

import pytest

from tests.support.manifests import complete, write
from tests.support.owners import elsewhere, write_heartbeat
from tests.support.tiny_store import manifest
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import CheckOutcome
from tokenuq_pipeline.runtime.manifest import FileEntry, Provenance
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.runtime.processes import is_alive, process_name
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path
from tokenuq_pipeline.runtime.trash import Trash

ASSET, PLACE = "s/teacher_hidden", "teacher_hidden/study=s"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def staged(store, content):
    folder = store.home / ".staging" / "work" / content
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / name).write_text(content)
    return folder


def publish(store, folder, **parts):
    files = store.settle({"teacher_hidden": folder}, {"teacher_hidden": PLACE})
    parts = {"outputs": {"teacher_hidden": PLACE}, "files": files, **parts}
    store.publish(manifest(ASSET, **parts), {"teacher_hidden": folder})


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_paths_are_hive_partitions():
    assert table_path("token_losses", study="s") == "token_losses/study=s"
    assert table_path("selections", study="s", ablation="a") == "selections/study=s/ablation=a"
    assert table_path("examples", dataset="d") == "examples/dataset=d"
    assert partition_path("plots", study="s", stage="x") == "plots/study=s/stage=x"


def test_publish_replaces_every_old_file(store):
    for text in ("first", "second"):
        folder = staged(store, text)
        publish(store, folder)
        assert content(store.path(PLACE)) == {"one": text, "two": text} and store.problems(ASSET) == []
        assert not folder.exists()
    assert os.listdir(store.home / ".staging" / "work") == os.listdir(store.home / ".publishing") == []


def test_nothing_is_published_through_a_link(store, tmp_path):
    (tmp_path / "elsewhere" / "study=s").mkdir(parents=True)
    (tmp_path / "elsewhere" / "study=s" / "precious").write_text("x")
    store.home.mkdir()
    for place in ("teacher_hidden", "teacher_hidden/study=s"):
        store.path(place).parent.mkdir(parents=True, exist_ok=True)
        store.path(place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="is a symbolic link: "):
            publish(store, staged(store, place.replace("/", "_")))
        store.path(place).unlink()
    assert content(tmp_path / "elsewhere" / "study=s") == {"precious": "x"}


def test_a_manifest_marks_an_asset_as_complete(store):
    assert store.read_manifest(ASSET) is None
    store.path(PLACE).parent.mkdir(parents=True)
    staged(store, "x").rename(store.path(PLACE))
    parts = {"fields": {"k": 1}, "input_data_versions": {"s/b": "dv2"}, "metrics": {"m": 1.5}}
    parts["outputs"] = {"teacher_hidden": PLACE}
    written = complete(store, manifest(ASSET, data_version="dv", **parts))
    read = store.read_manifest(ASSET)
    assert read == written and read.data_version == "dv" and read.input_data_versions == {"s/b": "dv2"}
    assert read.fields == {"k": 1} and read.metrics == {"m": 1.5}
    # SHA-256 of the letter x, from the standard's own test tools.
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert read.files[0] == FileEntry(path=f"{PLACE}/one", bytes=1, sha256=digest)
    assert [file.path for file in read.files] == [f"{PLACE}/one", f"{PLACE}/two"]
    assert store.is_complete(ASSET)
    store.path(f"{PLACE}/two").unlink()
    assert not store.is_complete(ASSET) and store.incomplete_because(ASSET) == f"{PLACE}/two is missing"
    store.forget(ASSET)
    assert store.read_manifest(ASSET) is None and store.incomplete_because(ASSET) == "has no manifest"


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "is not JSON"),
        ("[]", "the file: "),
        ('{"asset": "s/a"}', "data_version: Field required"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_an_asset_with_a_damaged_manifest_is_incomplete_and_the_reason_names_the_file(store, content, said):
    path = store.home / ".manifests" / "s" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert store.read_manifest("s/a") is None and store.data_version("s/a") is None and not store.is_complete("s/a")
    reason = store.incomplete_because("s/a")
    assert reason.startswith(f"has a damaged manifest, {path}: ") and said in reason and "\n" not in reason
    (problem,) = store.problems("s/a")
    assert problem.startswith(f"has no readable manifest: {path}: ")


def test_a_manifest_without_plots_checks_and_provenance_is_read(store):
    """As early versions wrote it."""
    complete(store, manifest("s/a"))
    path = store.home / ".manifests" / "s" / "a.json"
    content = json.loads(path.read_text())
    for name in ("plots", "checks", "provenance"):
        del content[name]
    write(path, content)
    assert store.is_complete("s/a") and store.read_manifest("s/a").provenance.run_id is None


def test_the_format_on_disk(store):
    """Other programs and later versions read it."""
    parts = {"checks": {"c": CheckOutcome(passed=True, description="d", figures={"f": 0.5})}}
    provenance = Provenance(run_id="r", made_at="t", seed=None, packages={"p": "1"}, git_dirty=False)
    complete(store, manifest("s/a", provenance=provenance, metrics={"m": None, "n": 1, "b": True}, **parts))
    written = json.loads((store.home / ".manifests" / "s" / "a.json").read_text())
    digest = written.pop("manifest_sha256")
    assert written == {
        "asset": "s/a",
        "data_version": "d",
        "code_version": "1-s",
        "spec_hash": "s",
        "fields": {},
        "input_data_versions": {},
        "metrics": {"m": None, "n": 1, "b": True},
        "plots": {},
        "checks": {"c": {"passed": True, "description": "d", "figures": {"f": 0.5}}},
        "provenance": {"run_id": "r", "made_at": "t", "packages": {"p": "1"}, "git_dirty": False},
        "outputs": {},
        "files": [],
    }
    text = json.dumps(written, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_staging_is_deleted_also_after_a_failure(store):
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list((store.home / ".staging").iterdir()) == []


def test_what_no_process_has_named_goes_from_the_staging_folder_to_the_trash_after_a_day(store):
    for name in ("new", "thesis"):
        (store.home / ".staging" / name).mkdir(parents=True)
        (store.home / ".staging" / name / "text").write_text("x")
    os.utime(store.home / ".staging" / "thesis", (0, 0))
    assert store.clean_staging() == ["thesis"] and os.listdir(store.home / ".staging") == ["new"]
    (entry,) = Trash(store.home).entries()
    assert (entry.path / ".staging" / "thesis" / "text").read_text() == "x"


def test_nothing_is_cleaned_behind_a_link(store, tmp_path):
    (tmp_path / "home_folder" / "1-1-thesis").mkdir(parents=True)
    store.home.mkdir()
    (store.home / ".staging").symlink_to(tmp_path / "home_folder")
    assert store.clean_staging() == [] and (tmp_path / "home_folder" / "1-1-thesis").is_dir()


@pytest.mark.slow
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


def test_staging_of_other_machines_stays_while_they_are_heard(store):
    with store.staging() as own:
        assert Owner.parse(own.name.rpartition("+")[0]) == Owner.current()
        silent, alive = (elsewhere(pid) for pid in (1, 2))
        write_heartbeat(silent, store.home, age=61)
        write_heartbeat(alive, store.home, age=59)
        for owner in (silent, alive, elsewhere(3)):
            (store.home / ".staging" / f"{owner}+a").mkdir()
        # The third has no heartbeat yet: it has just been started.
        assert store.clean_staging() == [f"{silent}+a"] and own.is_dir()


def test_published_files_have_the_rights_that_the_umask_gives(store):
    """Libraries that write by temporary files leave them closed to other users."""
    folder = staged(store, "x")
    folder.chmod(0o750)
    (folder / "one").chmod(0o600)
    entries = store.settle({"t": folder}, {"t": "place"})
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("one", "two")] == [0o640, 0o640]
    assert [entry.path for entry in entries] == ["place/one", "place/two"] and entries[0].bytes == 1
