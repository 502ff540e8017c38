"""Write files and folders so that readers see the old content or the new, and a power loss keeps one of them.

    with atomic_write(path) as file:      # path appears, complete and on the disk, when the block ends
        file.write(b"...")

A write is atomic: the content goes to a hidden file next to `path`, which takes its name in one step. By default it is
also durable: the content is flushed to the disk before that step, and the name after it. `durable=False` is for content
whose loss costs nothing:

- fingerprints of data files (`tokenuq_pipeline/runtime/fingerprints.py`): a cache, computed again when it is missing;
- the output of `tokenuq query --output`: the user's file, which the same query writes again.

Files that a stage writes once into its empty staging folder (adapters, plots, report pages) need neither: the store
flushes the whole folder before it publishes it. Only appends to the answer cache
(`tokenuq_ml/evaluation/answer_cache.py`) are not replacements; they use `append_line`.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenuq_ml.disk import note_write

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


class AtomicFile:
    """A binary file that takes the name `path` when it is committed.

    For writers that keep the file open over several calls; others use `atomic_write`.

    Attributes:
        file: where the content is written. It is seekable.
        temporary: its name until then.
    """

    def __init__(self, path: str | Path, durable: bool = True):
        self.path, self._durable = Path(path), durable
        # Unique: two processes may write the same file, and the last one to commit wins.
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.writing")
        self.file: BinaryIO = open(self.temporary, "xb")

    def commit(self) -> None:
        """Give the file its name, in place of an earlier file."""
        self.file.flush()
        if self._durable:
            os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)
        if self._durable:
            fsync(self.path.parent)

    def discard(self) -> None:
        """Remove the file. Does nothing after `commit`. An error of a full disk learns how much had been written."""
        error = sys.exception()
        if error is not None and not self.file.closed:
            with contextlib.suppress(OSError, ValueError):
                note_write(error, self.path, os.fstat(self.file.fileno()).st_size)
        # What is still in the buffer finds no room either.
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends; after an exception, `path` stays as it was.

    Args:
        path: the file to write. Its folder must exist.
        durable: flush the content and the name to the disk.
    """
    writing = AtomicFile(path, durable)
    try:
        yield writing.file
        writing.commit()
    finally:
        writing.discard()


def append_line(path: str | Path, line: bytes) -> None:
    """Append a line and flush it to the disk.

    A process that dies meanwhile leaves part of a line. The next line starts on a line of its own.
    """
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def fsync(path: str | Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: str | Path) -> None:
    """Flush a folder with all its files and subfolders to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            fsync(Path(root, name))
        fsync(root)


def make_folders(folder: str | Path) -> None:
    """Create a folder and its parents where they are missing; the names of new ones are flushed to the disk."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync(path.parent)


def move_into_place(new: str | Path, path: str | Path, aside: str | Path) -> None:
    """Move the folder `new` to `path`, durably. What `path` held is kept: at `new`, if the system can exchange folders.

    A crash leaves each of the two folders complete, at one of the three paths.

    Args:
        new: a folder whose content is on the disk.
        path: where it goes. Its parent exists.
        aside: where the old content goes if the system cannot exchange two folders in one step.
    """
    new, path, aside = Path(new), Path(path), Path(aside)
    if not os.path.lexists(path):
        os.rename(new, path)
    elif not exchange_folders(new, path):
        aside.parent.mkdir(exist_ok=True)
        os.rename(path, aside)
        fsync(aside.parent)
        os.rename(new, path)
    fsync(path.parent)
    fsync(new.parent)


def replace_folder(new: str | Path, path: str | Path) -> None:
    """Move the folder `new` to `path` in one step, in place of what `path` holds; then delete the old content.

    The content is flushed to the disk before the step, the name after it. Both paths must be on one file system, and
    the parent of `path` must exist. Where the step fails, `path` keeps the old content. Where the file system cannot
    exchange two folders in one step, `path` is missing for the moment between two renames.
    """
    new, path = Path(new), Path(path)
    fsync_tree(new)
    # Also a link that leads nowhere is replaced.
    if os.path.lexists(path):
        _swap(new, path)
        fsync(path.parent)
        _remove(new)
    else:
        os.rename(new, path)
        fsync(path.parent)


def _remove(path: Path) -> None:
    """Delete a folder, or the file or link that was in its place; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def exchange_folders(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux: `renameat2`); return False where the system cannot.

    Raises:
        OSError: the system can, but the exchange failed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _swap(one: Path, other: Path) -> None:
    """Exchange two folders; by three renames where the system cannot do it in one step."""
    if exchange_folders(one, other):
        return
    aside = one.with_name(f"{one.name}.old")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)
