"""The spill folder: locked while it is in use, removed after; folders of killed processes are swept, others are not."""

import os
import shutil
import tempfile
from types import SimpleNamespace

import duckdb
import pytest

from tokenuq_ml.tables import spill
from tokenuq_ml.tables.spill import PREFIX, SpillFolder, spill_folder, sweep
from tokenuq_ml.tables.sql import connect


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_by_a_killed_process(temporary, name="dead"):
    folder = temporary / f"{PREFIX}{name}"
    (folder / "db").mkdir(parents=True)
    (folder / "db/spilled.tmp").write_bytes(b"x" * 1000)
    return folder


def test_a_folder_is_private_and_removed_with_its_content():
    with spill_folder() as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
        (folder.path / "x").write_text("x")
        path = folder.path
    assert not path.exists() and folder.path is None


def test_folders_of_killed_processes_are_swept_and_those_in_use_stay(temporary):
    dead = left_by_a_killed_process(temporary)
    with spill_folder() as used:
        assert not dead.exists()
        sweep()
        with spill_folder():
            assert used.path.exists()


def test_what_another_user_left_or_what_is_a_link_stays(temporary, monkeypatch):
    elsewhere = temporary / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").write_text("x")
    other = left_by_a_killed_process(temporary, "other")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    sweep()
    assert other.exists()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sweep()
    assert not other.exists() and (elsewhere / "kept").exists() and (temporary / f"{PREFIX}file").exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(monkeypatch):
    lock, swept = spill._lock, []

    def slow_lock(descriptor):
        if not swept:
            swept.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            shutil.rmtree(swept[0])
        return lock(descriptor)

    monkeypatch.setattr(spill, "_lock", slow_lock)
    with spill_folder() as folder:
        assert folder.path.exists() and str(folder.path) != swept[0]


def test_without_a_folder_a_query_has_its_memory_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    folder = SpillFolder.create()
    assert folder.path is None and folder.limit() == 0
    with connect(tmp_path, "20MiB", folder) as connection:
        assert connection.execute("SELECT count(*) FROM range(1000)").fetchall() == [(1000,)]
        with pytest.raises(duckdb.Error, match="Out of Memory|memory"):
            connection.execute("SELECT hash(i) AS h FROM range(20000000) AS t(i) ORDER BY h").fetchmany(1)
        # Nor does it write to DuckDB's default, `.tmp` in the working directory.
        with pytest.raises(duckdb.Error, match="disabled"):
            connection.execute("COPY (SELECT 1) TO '.tmp/x.csv'")


def test_a_spill_is_bounded_by_what_is_free(monkeypatch):
    with spill_folder() as folder:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=60))
        assert folder.limit() == 30
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**60))
        assert folder.limit() == spill.LARGEST


def test_a_query_spills_there_and_leaves_nothing(tmp_path):
    with spill_folder() as folder:
        connection = connect(tmp_path / "store", "30MiB", folder)
        reader = connection.sql("SELECT hash(i) AS h FROM range(3000000) AS t(i) ORDER BY h").to_arrow_reader(1000)
        reader.read_next_batch()
        assert sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file()) > 2**20
        reader.close()
        connection.close()
        assert not [path for path in folder.path.rglob("*") if path.is_file()]
