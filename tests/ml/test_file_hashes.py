"""Hashes of files: read once, and again after every change; only of regular files."""

import hashlib
import os
import time

import pytest

from tokenuq_ml import file_hashes
from tokenuq_ml.file_hashes import KeptHashes, NotAFile, open_regular, sha256_of


@pytest.fixture
def reads(monkeypatch):
    """The number of times that the content of a file is hashed."""
    found, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: found.append(file.name) or real(file, name))
    return found


def written(path, content=b"abc"):
    path.write_bytes(content)
    return path


def let_age(monkeypatch, seconds):
    """Let files count as old: what is asked is the clock."""
    now = time.time()
    monkeypatch.setattr(file_hashes.time, "time", lambda: now + seconds)


def test_a_file_is_read_once(tmp_path, reads, monkeypatch):
    path = written(tmp_path / "file")
    let_age(monkeypatch, 1)
    assert sha256_of(path) == sha256_of(path) == hashlib.sha256(b"abc").hexdigest() and len(reads) == 1
    os.link(path, tmp_path / "other")
    # A link changes the time of change: the file is read again, by either name once.
    sha256_of(tmp_path / "other"), sha256_of(path)
    assert len(reads) == 2


def test_a_file_that_was_written_to_is_read_again_whatever_its_size_and_time_of_modification(tmp_path, monkeypatch):
    path = written(tmp_path / "file")
    let_age(monkeypatch, 1)
    first, status = sha256_of(path), path.stat()
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.write(b"xyz")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == status.st_size
    assert sha256_of(path) == hashlib.sha256(b"xyz").hexdigest() != first


def test_a_hash_of_a_file_that_was_just_written_is_not_kept(tmp_path, reads):
    path = written(tmp_path / "file")
    sha256_of(path), sha256_of(path)
    assert len(reads) == 2


@pytest.mark.parametrize("kind", ["folder", "symbolic link", "FIFO", "device"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(written(tmp_path / "target"))
    if kind == "device":
        path = "/dev/zero"
    with pytest.raises(NotAFile, match=f"is a {kind}, not a file"):
        sha256_of(path)


def test_a_fifo_that_takes_the_files_place_does_not_block(tmp_path, monkeypatch):
    path, file = tmp_path / "it", written(tmp_path / "file")
    os.mkfifo(path)
    status = os.lstat(file)
    monkeypatch.setattr(file_hashes.os, "lstat", lambda _: status)
    with pytest.raises(NotAFile, match="FIFO"):
        open_regular(path)


def test_hashes_outlive_the_process(tmp_path, reads, monkeypatch):
    path, kept = written(tmp_path / "file"), tmp_path / "cache" / "hashes.json"
    let_age(monkeypatch, 10)
    one = KeptHashes(kept)
    one.sha256_of(path)
    one.save()
    monkeypatch.setattr(file_hashes, "_known", {})
    assert KeptHashes(kept).sha256_of(path) == hashlib.sha256(b"abc").hexdigest() and len(reads) == 1
    time.sleep(0.02)
    written(path, b"xyz")
    assert KeptHashes(kept).sha256_of(path) == hashlib.sha256(b"xyz").hexdigest()


def test_hashes_of_two_processes_are_both_kept(tmp_path, monkeypatch):
    let_age(monkeypatch, 10)
    one, other = KeptHashes(tmp_path / "hashes"), KeptHashes(tmp_path / "hashes")
    for number, hashes in enumerate((one, other)):
        hashes.sha256_of(written(tmp_path / str(number), b"%d" % number))
    one.save(), other.save()
    assert len(KeptHashes(tmp_path / "hashes")._read()) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000, None])
def test_damaged_hashes_count_as_none(tmp_path, content, monkeypatch):
    path, kept = written(tmp_path / "file"), tmp_path / "hashes"
    let_age(monkeypatch, 10)
    kept.mkdir() if content is None else kept.write_bytes(content)
    hashes = KeptHashes(kept)
    assert hashes.sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
    hashes.save()
