"""Errors that mean that a disk is full, in words.

    try:
        write(folder)
    except Exception as error:
        if message := full_disk(error, folder, store):
            ...                          # "the disk at /data is full: 0 bytes of 20.0 GB are free; ..."

A full disk has no exception of its own: libraries report it by an `OSError`, by an exception of theirs with the
system's words in it (safetensors, Polars, DuckDB, SQLite), or by words that say something else (torch: "unexpected
pos", numpy: "requested and written"). The last kind counts only if one of the disks has next to no space left.
"""

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from tokenuq_ml.disk_space import Space, existing, folder_size, in_words, space, temporary_folder
from tokenuq_ml.errors import InputError

NEARLY_FULL = 2**20
"""Free bytes below which a vague error of a write is taken for a full disk."""
REMEDY = "make space and run the same command again: finished assets and checkpoints are kept"
KEPT_IN_STORE = {".trash": "empty it with `tokenuq prune --now`", ".checkpoints": "trainings resume from it"}
"""Folders of a store that a user may not know of, and what to do about each."""


class DiskFull(InputError):
    """A disk has less space than is needed; the message names the disk, and says how much is free and needed."""


class Cause(Enum):
    """Why a write failed."""

    FULL = "full"
    QUOTA = "quota"
    READ_ONLY = "read-only"
    FILE_SIZE = "file size"
    VAGUE = "vague"
    """The error says nothing of a disk, but is what some library raises if one is full."""


_NUMBERS = {
    errno.ENOSPC: Cause.FULL,
    errno.EDQUOT: Cause.QUOTA,
    errno.EROFS: Cause.READ_ONLY,
    errno.EFBIG: Cause.FILE_SIZE,
}
_WORDS = (
    (Cause.FULL, re.compile(r"no space left on device|database or disk is full|os error 28\b|StorageFull", re.I)),
    (Cause.FULL, re.compile(r"failed to offload data block", re.I)),
    (Cause.QUOTA, re.compile(r"disk quota exceeded|os error 122\b", re.I)),
    (Cause.READ_ONLY, re.compile(r"read-only file system|os error 30\b|attempt to write a readonly database", re.I)),
    (Cause.FILE_SIZE, re.compile(r"\bfile too large\b|os error 27\b", re.I)),
    (Cause.VAGUE, re.compile(r"unexpected pos \d+|iostream error|PytorchStreamWriter failed", re.I)),
    (
        Cause.VAGUE,
        re.compile(
            r"no usable temporary directory|\d+ requested and \d+ written|unable to open database file|disk I/O error",
            re.I,
        ),
    ),
)
_NO_TEMPORARY_FOLDER = re.compile("no usable temporary directory", re.I)
"""What Python says, by ENOENT, if the disks of all folders for temporary files are full."""
_PATH = re.compile(r"""(?:path|file|directory)\s+\\?["'](/[^"']+?)\\?["']""")


def cause_of(error: BaseException) -> Cause | None:
    """Return why a write failed; None if the error is of another kind. Looks into the errors that led to it."""
    causes = [cause for one in _chain(error) if (cause := _cause(one)) is not None]
    return next((cause for cause in causes if cause is not Cause.VAGUE), causes[0] if causes else None)


def cause_in(text: str) -> Cause | None:
    """Return why a write failed, from the words of an error."""
    return next((cause for cause, words in _WORDS if words.search(text)), None)


def full_disk(error: BaseException | str, *paths: str | Path) -> str | None:
    """Return which disk is full, how much is free, what was being written, and what to do, in one sentence.

    Covers a used-up quota, used-up inodes, a read-only file system and a limit of file sizes too.

    Args:
        error: of a write; or its words, if it happened in another process.
        *paths: what the process writes to, the likeliest first; the folder for temporary files is added. A path that
            the error names counts more.

    Returns:
        The sentence; None if the error has another cause.
    """
    cause = cause_in(error) if isinstance(error, str) else cause_of(error)
    if cause is None:
        return None
    named = _named_path(error)
    # A name without folders, as in most libraries' errors, does not say on which disk the file is.
    places = [path for path in (named, *paths, temporary_folder()) if path is not None and Path(path).is_absolute()]
    disks = [space(path) for path in places]
    used_up = next((disk for disk in disks if _is_used_up(disk)), None)
    if cause is Cause.VAGUE and used_up is None:
        return None
    disk = disks[0] if named is not None and cause is not Cause.VAGUE else used_up or disks[0]
    details = "".join(f"; {part}" for part in (*_notes(error), *held_in_stores(places, disk)))
    return f"{_said(cause, disk)}{details}; {_remedy(cause)}"


@contextlib.contextmanager
def disk_errors(*paths: str | Path) -> Iterator[None]:
    """Turn errors of a full disk in the block into `DiskFull`, for writers whose half-written files are deleted next.

    Then the disk has space again, and the vague errors of some libraries would not be understood.

    Args:
        *paths: what is written.

    Raises:
        DiskFull: with the sentence of `full_disk`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (message := full_disk(error, *paths)) is not None:
            raise DiskFull(message) from error
        raise


def require_space(path: str | Path, needed: int, what: str) -> None:
    """Check that the disk of `path` has `needed` free bytes.

    Raises:
        DiskFull: it has less; `what` names what needs them.
    """
    disk = space(path)
    if disk.free < needed:
        held = "".join(f"; {part}" for part in held_in_stores([path], disk))
        raise DiskFull(
            f"{disk} has too little space: {what} needs {in_words(needed)}, and {in_words(disk.free)} of "
            f"{in_words(disk.total)} are free{held}; {REMEDY}"
        )


def note_write(error: BaseException, path: str | Path, written: int) -> None:
    """Add to an error how much of a file had been written, for the sentence of `full_disk`."""
    if written and cause_of(error) is not None and not _notes(error):
        error.add_note(f"{_NOTE}{Path(path).name} had {in_words(written)} when the write failed")


_NOTE = "disk: "


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those of its group, and those that led to it."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        # Of an error of ours, what led to it was weighed when the message was written.
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        elif one.__context__ is not None and not (isinstance(one, InputError) and one.__suppress_context__):
            waiting.append(one.__context__)


def _cause(error: BaseException) -> Cause | None:
    if isinstance(error, OSError) and error.errno is not None and not _NO_TEMPORARY_FOLDER.search(str(error)):
        return _NUMBERS.get(error.errno)
    # Errors of ours are sentences that may quote such words from a file or a user.
    return None if isinstance(error, InputError) else cause_in(str(error))


def _named_path(error: BaseException | str) -> str | None:
    """Return the absolute path that an error names; None if it names none."""
    if isinstance(error, str):
        found = _PATH.search(error)
        return found[1] if found else None
    for one in _chain(error):
        if isinstance(one, OSError) and isinstance(one.filename, str) and one.errno in _NUMBERS:
            # A rename names two, and the second one lacks the space.
            return os.path.abspath(one.filename2 if isinstance(one.filename2, str) else one.filename)
        if _cause(one) is not None and (found := _PATH.search(str(one))):
            return found[1]
    return None


def _notes(error: BaseException | str) -> list[str]:
    """Return how much had been written, as `note_write` has added it."""
    if isinstance(error, str):
        return []
    notes = [note for one in _chain(error) for note in getattr(one, "__notes__", ())]
    return [note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)][:1]


def _is_used_up(disk: Space) -> bool:
    return disk.free < min(NEARLY_FULL, disk.total // 20 + 1) or disk.files == 0


def _said(cause: Cause, disk: Space) -> str:
    """Return what is wrong with the disk."""
    free = f"{in_words(disk.free)} of {in_words(disk.total)} are free"
    if cause is Cause.QUOTA:
        return f"the quota on {disk} is used up (the whole disk: {free})"
    if cause is Cause.READ_ONLY:
        return f"{disk} is mounted read-only"
    if cause is Cause.FILE_SIZE:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            return f"a file on {disk} would exceed {in_words(limit)}, the limit of this process (`ulimit -f`)"
        return f"a file on {disk} would exceed what its file system allows"
    if disk.files == 0:
        return f"{disk} takes no more files: its inodes are used up ({free})"
    # What was half written has been deleted by now, which may have made some space.
    return f"{disk} is full: {free}{'' if _is_used_up(disk) else ' now, without what was half written'}"


def _remedy(cause: Cause) -> str:
    if cause is Cause.READ_ONLY:
        return "mount it for writing (a disk with errors is switched to read-only: see `dmesg`) and run again"
    if cause is Cause.FILE_SIZE:
        return "raise the limit and run the same command again: finished assets and checkpoints are kept"
    return REMEDY


def held_in_stores(paths: Iterable[str | Path], disk: Space | None = None) -> Iterator[str]:
    """Yield how much the folders of stores hold that a user may not know of.

    Args:
        paths: in the stores.
        disk: only of stores on this disk.
    """
    for store in dict.fromkeys(found for path in paths if (found := _store_of(path)) is not None):
        for name, advice in KEPT_IN_STORE.items():
            size = folder_size(store / name)
            if size and (disk is None or space(store / name).mount == disk.mount):
                yield f"{store / name} holds {in_words(size)} ({advice})"


def _store_of(path: str | Path) -> Path | None:
    """Return the store that a path is in."""
    place = existing(path)
    return next((folder for folder in (place, *place.parents) if (folder / ".manifests").is_dir()), None)
