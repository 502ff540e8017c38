"""Errors of full disks, as every library in use raises them: recognised, and told with disk, space and remedy."""

import errno
import json
import os
import resource
import sqlite3
import subprocess
import sys

import pytest

from tests.support.disks import small_disk
from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.disk import Cause, DiskFull, cause_in, cause_of, disk_errors, full_disk, require_space
from tokenuq_ml.disk_space import folder_size, in_words, space
from tokenuq_ml.errors import InputError

WRITERS = """
import sys, sqlite3, subprocess, json, os
from pathlib import Path
import numpy as np
big = np.random.default_rng(0).random(300_000)
def safetensors(folder):
    from safetensors.numpy import save_file
    save_file({"a": big}, folder / "a.safetensors")
def torch_file(folder):
    import torch
    torch.save({"a": torch.from_numpy(big)}, folder / "a.pt")
def numpy_file(folder):
    np.save(folder / "a.npy", big)
def arrow(folder):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({"a": big}), folder / "a.parquet")
def polars_file(folder):
    import polars as pl
    pl.DataFrame({"a": big}).write_parquet(folder / "a.parquet")
def table(folder):
    from tokenuq_ml.atomic_files import atomic_write
    import pyarrow as pa, pyarrow.parquet as pq
    with atomic_write(folder / "part-0.parquet") as file:
        pq.write_table(pa.table({"a": big}), file)
def sqlite(folder):
    with sqlite3.connect(folder / "runs.db") as connection:
        connection.execute("create table if not exists t(a)")
        connection.execute("insert into t values (?)", (bytes(big),))
def alchemy(folder):
    import sqlalchemy as sa
    with sa.create_engine(f"sqlite:///{folder}/event.db").begin() as connection:
        connection.execute(sa.text("create table t(a)"))
        connection.execute(sa.text("insert into t values (:a)"), {"a": bytes(big)})
def duckdb_copy(folder):
    import duckdb
    duckdb.sql(f"COPY (SELECT random() FROM range(300000)) TO '{folder}/a.csv'")
def duckdb_spill(folder):
    import duckdb
    c = duckdb.connect(config={"temp_directory": str(folder / "spill"), "memory_limit": "30MB", "threads": 1})
    c.execute("CREATE TEMP TABLE t AS SELECT random() a, repeat('x', 50) || i FROM range(2000000) r(i)")
def copy(folder):
    import shutil
    source = Path(sys.argv[2], "source"); source.mkdir(exist_ok=True); (source / "a").write_bytes(bytes(big))
    shutil.copytree(source, folder / "copy")
def text(folder):
    (folder / "a.json").write_text("x" * 2_000_000)
def line(folder):
    from tokenuq_ml.atomic_files import append_line
    append_line(folder / "answers.jsonl", b"x" * 2_000_000)
from tokenuq_ml.disk import full_disk
folder = Path(sys.argv[1])
found = {}
for write in (safetensors, torch_file, numpy_file, arrow, polars_file, table, sqlite, alchemy, duckdb_copy,
              duckdb_spill, copy, text, line):
    subprocess.run(["find", folder, "-mindepth", "1", "-delete"], check=True)
    try:
        write(folder)
    except Exception as error:
        found[write.__name__] = [full_disk(error, folder), sorted(os.listdir(folder))]
print(json.dumps(found))
"""


def failures_of_writers(tmp_path, folder, preexec=None):
    out = subprocess.run(
        [sys.executable, "-c", WRITERS, str(folder), str(tmp_path)],
        capture_output=True, text=True, preexec_fn=preexec, check=True,
    )  # fmt: skip
    return json.loads(out.stdout)


@pytest.mark.slow
def test_every_library_that_writes_reports_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", kib=600) as folder:
        found = failures_of_writers(tmp_path, folder)
        assert len(found) == 13
        for name, (message, left) in found.items():
            assert message is not None, name
            assert message.startswith(f"the disk at {folder} is full: "), name
            assert message.endswith("run the same command again: finished assets and checkpoints are kept"), name
            if name == "table":
                assert left == [] and "; part-0.parquet had 6" in message


@pytest.mark.heavy
def test_every_library_reports_a_limit_of_file_sizes(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # noqa: E731
    found = failures_of_writers(tmp_path, tmp_path, limit)
    said = {name: message for name, (message, _) in found.items() if message is not None}
    # SQLite, torch and numpy do not say why they failed, and the disk has space.
    assert set(found) - set(said) <= {"sqlite", "alchemy", "torch_file", "numpy_file", "copy"}
    assert len(said) >= 6
    assert all("would exceed 300.0 kB, the limit of this process (`ulimit -f`)" in message for message in said.values())


def test_used_up_inodes_and_read_only_disks_are_told_apart(tmp_path):
    with small_disk(tmp_path / "disk", kib=600, inodes=8) as folder:
        with pytest.raises(OSError) as no_inode:
            for number in range(20):
                (folder / str(number)).touch()
        assert full_disk(no_inode.value, folder).startswith(f"the disk at {folder} takes no more files: its inodes are")
        with pytest.raises(sqlite3.OperationalError) as no_database:
            sqlite3.connect(folder / "runs.db").execute("create table t(a)")
        assert "its inodes are used up" in full_disk(no_database.value, folder)
    with small_disk(tmp_path / "disk", kib=600, read_only=True) as folder:
        with pytest.raises(OSError) as read_only:
            (folder / "a").touch()
        assert full_disk(read_only.value).startswith(f"the disk at {folder} is mounted read-only; mount it for writing")


@pytest.mark.parametrize(
    "words, cause",
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", Cause.FULL),
        ("(sqlite3.OperationalError) database or disk is full", Cause.FULL),
        ("Disk quota exceeded (os error 122)", Cause.QUOTA),
        ("attempt to write a readonly database", Cause.READ_ONLY),
        ("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534", Cause.VAGUE),
        ("100000 requested and 38384 written", Cause.VAGUE),
        ("unable to open database file", Cause.VAGUE),
        ("[Errno 2] No usable temporary directory found in ['/tmp', '/var/tmp']", Cause.VAGUE),
        ("KeyError: 'disk'", None),
        ("the error 28 items", None),
    ],
)
def test_words_of_libraries(words, cause):
    assert cause_in(words) == cause


def test_causes_and_groups_are_searched_and_errors_of_ours_are_not():
    full = OSError(errno.ENOSPC, "No space left on device")
    try:
        raise RuntimeError("the cell failed") from full
    except RuntimeError as error:
        assert cause_of(error) == Cause.FULL
    assert cause_of(ExceptionGroup("several", [ValueError("x"), full])) == Cause.FULL
    assert cause_of(OSError(errno.EDQUOT, "x")) == Cause.QUOTA
    assert cause_of(OSError(errno.EACCES, "No space left on device, it is said")) is None
    assert cause_of(InputError("row 3: 'No space left on device'")) is None
    assert full_disk(ValueError("x")) is None


def test_a_vague_error_counts_on_a_full_disk_only(tmp_path):
    assert full_disk(RuntimeError("unexpected pos 576 vs 534"), tmp_path) is None


def test_a_full_disk_for_temporary_files_is_named(tmp_path, monkeypatch):
    """Python looks for the folder by writing to it, and finds none."""
    with small_disk(tmp_path / "disk", kib=16) as folder:
        (folder / "fill").write_bytes(bytes(16 * 1024))
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        error = FileNotFoundError(errno.ENOENT, f"No usable temporary directory found in ['{folder}']")
        assert full_disk(error, "/").startswith(f"the disk at {folder} is full: 0 bytes of 16.4 kB are free")
        assert full_disk(OSError(errno.ENOENT, "No such file"), "/") is None
        assert full_disk(OSError(errno.ENOSPC, "x"), folder).startswith(f"the disk at {folder} is full")


def test_a_quota_is_no_full_disk(tmp_path):
    said = full_disk(OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "a")), "/")
    assert said.startswith(f"the quota on the disk at {space(tmp_path).mount}") and "is used up" in said


def test_the_message_names_what_the_store_could_free(tmp_path):
    store = tmp_path / "store"
    for name, size in ((".trash/old/a", 5_000_000), (".checkpoints/s/a", 2_000), (".manifests/x.json", 1)):
        path = store / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    said = full_disk(OSError(errno.ENOSPC, "x"), store / "datasets" / "new")
    assert f"{store}/.trash holds 5.0 MB (empty it with `tokenuq prune --now`)" in said
    assert f"{store}/.checkpoints holds 2.0 kB (trainings resume from it)" in said


def test_too_little_space_is_refused_before_the_work(tmp_path):
    require_space(tmp_path / "not" / "yet" / "made", 1, "a file")
    with pytest.raises(DiskFull, match=r"has too little space: the cache needs 1,000,000.0 TB, and .* are free"):
        require_space(tmp_path, 10**18, "the cache")


def test_what_was_half_written_is_deleted_and_told(tmp_path):
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "a") as file:
        file.write(bytes(3_000_000))
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []
    assert "; a had 3.0 MB when the write failed; make space" in full_disk(error.value, tmp_path)


def test_errors_in_a_block_become_one_sentence(tmp_path):
    with pytest.raises(DiskFull, match="is full: "), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("x")
    with pytest.raises(InputError, match="ours"), disk_errors(tmp_path):
        raise InputError("ours")


def test_sizes(tmp_path):
    assert [in_words(size) for size in (0, 999, 1000, 2.5e6, 3e9, 4e12)] == [
        "0 bytes", "999 bytes", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB"
    ]  # fmt: skip
    (tmp_path / "a").write_bytes(bytes(10))
    assert folder_size(tmp_path) == 10 and folder_size(tmp_path / "none") == 0
