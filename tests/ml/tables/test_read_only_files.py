"""The file system through which DuckDB reads a store: known files only, for reading, once they are verified."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.read_only_files import ReadOnlyFile, ReadOnlyFiles

ADDRESS = "store://curriculum/study=a/part-0.parquet"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "curriculum/study=a/part-0.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def reading(tmp_path, file, damage=lambda home, table: None):
    return ReadOnlyFiles(tmp_path, {"curriculum": [file]}, damage)


@pytest.mark.parametrize("mode", ["wb", "ab", "xb", "r+b", "w", "w+b"])
def test_a_file_opens_for_reading_only(tmp_path, file, mode):
    before = file.read_bytes()
    with pytest.raises(PermissionError, match="cannot be written"):
        reading(tmp_path, file).open(ADDRESS, mode)
    with pytest.raises(PermissionError):
        reading(tmp_path, file).open(ADDRESS).write(b"x")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "method",
    [
        "rm",
        "rm_file",
        "rmdir",
        "mv",
        "move",
        "rename",
        "copy",
        "cp_file",
        "mkdir",
        "makedirs",
        "touch",
        "pipe_file",
        "put",
    ],
)
def test_nothing_is_altered(tmp_path, file, method):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(PermissionError, match="cannot be written"):
        getattr(reading(tmp_path, file), method)(ADDRESS, "store://other")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_other_file_exists(tmp_path, file):
    (tmp_path / "secret").write_text("x")
    files = reading(tmp_path, file)
    for path in ("store://secret", "store://../x", str(file), "/etc/passwd", "store://curriculum"):
        assert not files.exists(path) and files.glob(path) == []
        with pytest.raises(PermissionError, match="no file of a complete asset"):
            files.open(path)
    assert files.glob(ADDRESS) == [ADDRESS] and files.ls("store://") == []
    assert files.glob("store://curriculum/*/part-0.parquet") == []


def test_a_damaged_table_is_refused_and_a_replaced_file_is_looked_at_again(tmp_path, file):
    damage, asked = [None], []

    def damage_of_table(home, table):
        asked.append(table)
        return damage[0]

    files = reading(tmp_path, file, damage_of_table)
    files.open(ADDRESS).close()
    assert asked == []
    files.verify = True
    for _ in range(3):
        files.open(ADDRESS).close()
    assert asked == ["curriculum"]
    file.write_bytes(b"other")
    damage[0] = "this is wrong"
    with pytest.raises(PermissionError, match="table curriculum is damaged: this is wrong"):
        files.open(ADDRESS)


def test_threads_that_share_a_file_do_not_mix_their_positions(file):
    opened, content = ReadOnlyFile(file), file.read_bytes()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    started = threading.Barrier(4)

    def read(first):
        started.wait()
        for offset in range(first, len(content), 4 * 997):
            opened.seek(offset)
            if opened.read(100) != content[offset : offset + 100]:
                return False
        return True

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, [0, 997, 1994, 2991]))
    finally:
        sys.setswitchinterval(interval)
        opened.close()


def test_positions(file):
    with pytest.raises(OSError):
        ReadOnlyFile(file.with_name("none"))
    opened = ReadOnlyFile(file)
    assert opened.seek(-2, 2) == 2**20 - 2 and opened.read() == b"\xfe\xff" and opened.read(5) == b""
    assert opened.seek(1) == 1 and opened.seek(1, 1) == 2 and opened.read(1) == b"\x02" and opened.tell() == 3
    opened.close()
    opened.close()


def test_only_the_needed_parts_of_a_file_are_read(tmp_path, monkeypatch):
    from tokenuq_ml.tables.sql import connect

    rows = {"step": range(200_000), "epoch": 1.0, "category": "word", "n_tokens": 1, "n_selected": 0, "mean_loss": 0.5}
    frame = pl.DataFrame(rows).with_columns(mean_loss=pl.col("step").hash() / 2**64)
    folder = tmp_path / "curriculum/study=a/ablation=b"
    write_table(frame, "curriculum", folder, spec_hash="s", code_version="c")
    size, counted, read = (folder / "part-0.parquet").stat().st_size, [], ReadOnlyFile.read
    monkeypatch.setattr(ReadOnlyFile, "read", lambda self, n=-1: (counted.append(n), read(self, n))[1])
    with connect(tmp_path) as connection:
        for sql, share in (("sum(n_selected)", 0.1), ("sum(mean_loss)", 1.0)):
            counted.clear()
            connection.execute(f"SELECT {sql} FROM curriculum").fetchall()
            assert 0 < sum(counted) < share * size + 20_000
        counted.clear()
        connection.execute("SELECT mean_loss FROM curriculum WHERE step = 199999").fetchall()
        assert sum(counted) < 0.7 * size
