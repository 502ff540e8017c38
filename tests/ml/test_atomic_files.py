"""Files and folders appear complete or not at all, and a failed write leaves the old content."""

import errno
import os
import threading
from pathlib import Path

import pytest

from tokenuq_ml import atomic_files
from tokenuq_ml.atomic_files import append_line, atomic_write, exchange_folders, fsync_tree, replace_folder


@pytest.fixture
def synced(monkeypatch):
    """Names of the files and folders that were flushed to the disk, in order."""
    names, fsync = [], os.fsync

    def recording(descriptor):
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    return names


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    for name in ("one", "two"):
        (path / name).write_text(text)
    return path


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "file"):
        pass
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first" * 10)
        second.write(b"second")
    assert path.read_bytes() == b"first" * 10 and os.listdir(tmp_path) == ["file"]


def test_content_reaches_the_disk_before_the_name(tmp_path, synced):
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    assert len(synced) == 2 and synced[0].startswith(".file.") and synced[1] == tmp_path.name
    synced.clear()
    with atomic_write(tmp_path / "file", durable=False) as file:
        file.write(b"x")
    assert synced == []


def test_a_line_after_half_a_line_starts_on_its_own(tmp_path):
    path = tmp_path / "lines"
    append_line(path, b"1")
    append_line(path, b"2")
    assert path.read_bytes() == b"1\n2\n"
    path.write_bytes(b"1\nha")
    append_line(path, b"2")
    assert path.read_bytes() == b"1\nha\n2\n"


def test_fsync_tree_flushes_every_file_and_folder(tmp_path, synced):
    folder_of(tmp_path / "outer", "x")
    folder_of(tmp_path / "outer" / "inner", "x")
    fsync_tree(tmp_path / "outer")
    assert sorted(synced) == ["inner", "one", "one", "outer", "two", "two"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replace_folder_replaces_all_of_the_old(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic_files, "exchange_folders", lambda one, other: False)
    for text in ("first", "second", "third"):
        new = folder_of(tmp_path / "new", text)
        replace_folder(new, tmp_path / "final")
        assert content(tmp_path / "final") == {"one": text, "two": text}
        assert os.listdir(tmp_path) == ["final"]


def test_replace_folder_flushes_the_content_first(tmp_path, synced):
    replace_folder(folder_of(tmp_path / "new", "x"), tmp_path / "final")
    assert sorted(synced[:3]) == ["new", "one", "two"] and synced[3:] == [tmp_path.name]


def test_a_failed_replacement_leaves_the_old(tmp_path, monkeypatch):
    replace_folder(folder_of(tmp_path / "new", "old"), tmp_path / "final")
    monkeypatch.setattr(atomic_files, "exchange_folders", lambda one, other: False)
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append((source, target))
        if len(calls) == 2:
            raise OSError(errno.EIO, "disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError):
        replace_folder(folder_of(tmp_path / "new", "new"), tmp_path / "final")
    assert content(tmp_path / "final") == {"one": "old", "two": "old"}


def read_both(folder: Path) -> set[str] | None:
    """The contents of both files of the folder as it is when opened; None where it is deleted while we read."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        texts = set()
        for name in ("one", "two"):
            with open(os.open(name, os.O_RDONLY, dir_fd=descriptor)) as file:
                texts.add(file.read())
        return texts
    except FileNotFoundError:
        return None
    finally:
        os.close(descriptor)


def test_a_reader_never_misses_the_folder_or_sees_two_versions_of_it(tmp_path):
    probes = [folder_of(tmp_path / name, "x") for name in ("probe", "other")]
    if not exchange_folders(*probes):
        pytest.skip("this file system cannot exchange two folders")
    final = tmp_path / "final"
    replace_folder(folder_of(tmp_path / "new", "0"), final)
    seen, failures, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                seen.append(read_both(final))
            except OSError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 50):
            replace_folder(folder_of(tmp_path / "new", str(number)), final)
    finally:
        stop.set()
        reader.join()
    complete = [texts for texts in seen if texts is not None]
    assert not failures and all(len(texts) == 1 for texts in complete)
    assert len(set().union(*complete)) > 1


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_folder_replaces_what_is_no_folder(tmp_path, kind):
    new, path, other = tmp_path / "new", tmp_path / "path", tmp_path / "other"
    new.mkdir()
    (new / "content").write_text("new")
    if kind == "file":
        path.write_text("old")
    else:
        path.symlink_to(other)
    if kind == "link":
        other.mkdir()
        (other / "precious").touch()
    replace_folder(new, path)
    assert not path.is_symlink() and (path / "content").read_text() == "new" and not os.path.lexists(new)
    assert kind != "link" or (other / "precious").exists()
