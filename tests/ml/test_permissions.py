"""Files of another user are named with their owner and what to do."""

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from tokenuq_ml.permissions import not_permitted

NOBODY = 65534
AS_ROOT = os.geteuid() == 0


def as_another_user(function) -> str:
    """Return what `function` returns in a process of another user; without root, of this user."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if AS_ROOT:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(write_end, str(function()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def sentence(function, *folders) -> str:
    """What is said of the error that `function` raises for another user."""

    def run():
        try:
            function()
        except Exception as error:
            return not_permitted(error, *folders)

    return as_another_user(run)


@pytest.fixture
def folder():
    """A folder with a file; pytest's own temporary folders are closed to other users."""
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        made = Path(temporary) / "store"
        (made / "tables").mkdir(parents=True)
        (made / "tables" / "part-0.parquet").write_text("x")
        yield made
        for path in (made, *made.rglob("*")):
            path.chmod(0o700)


def close(*paths: Path, mode: int) -> None:
    for path in paths:
        path.chmod(mode)


def test_a_closed_folder_is_named_and_not_the_file_in_it(folder):
    close(folder, mode=0o700 if AS_ROOT else 0)
    said = sentence((folder / "tables" / "part-0.parquet").read_bytes)
    assert said.startswith(f"{folder} belongs to ") and "umask 002" in said and "\n" not in said


def test_a_folder_in_which_nothing_can_be_made_is_named(folder):
    close(folder / "tables", mode=0o755 if AS_ROOT else 0o555)
    said = sentence((folder / "tables" / "new").mkdir)
    assert said.startswith(f"{folder / 'tables'} belongs to ")


def test_a_file_that_cannot_be_written_is_named(folder):
    close(folder / "tables" / "part-0.parquet", mode=0o644 if AS_ROOT else 0o444)
    said = sentence(lambda: (folder / "tables" / "part-0.parquet").write_text("y"))
    assert said.startswith(f"{folder / 'tables' / 'part-0.parquet'} belongs to ")


def test_a_database_of_sqlite_is_found_by_its_folder(folder):
    path = folder / "runs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    close(path, mode=0o644 if AS_ROOT else 0o444)
    close(folder, folder / "tables", folder / "tables" / "part-0.parquet", mode=0o777)
    said = sentence(lambda: sqlite3.connect(path).execute("INSERT INTO t VALUES (1)"), folder)
    assert said.startswith(f"{path} belongs to ")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file"),
        OSError(28, "No space left on device"),
        ValueError("not allowed"),
        RuntimeError("403: permission denied by the hub"),
    ],
)
def test_other_errors_are_not_about_rights(error, tmp_path):
    assert not_permitted(error, tmp_path) is None
