"""Free space of disks, and sizes of folders."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Space:
    """A disk: what is mounted at one path.

    Attributes:
        place: the folder that was asked for, or the nearest one that exists.
        mount: the path where the disk is mounted.
        total: its size in bytes.
        free: the bytes that this user may still write.
        files: how many more files it takes; None if it has no such limit.
    """

    place: Path
    mount: Path
    total: int
    free: int
    files: int | None

    def __str__(self) -> str:
        return f"the disk at {self.mount}" + ("" if self.place == self.mount else f" (with {self.place})")


def space(path: str | Path) -> Space:
    """Return the disk that holds `path`, or would hold it if its folders are still missing."""
    place = existing(path)
    found = os.statvfs(place)
    mount = place
    while not os.path.ismount(mount):
        mount = mount.parent
    block = found.f_frsize or found.f_bsize
    files = found.f_favail if found.f_files else None
    return Space(place, mount, found.f_blocks * block, found.f_bavail * block, files)


def existing(path: str | Path) -> Path:
    """Return the nearest folder above `path` that exists, or `path` itself, without symbolic links."""
    place = Path(path).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place.resolve()


def in_words(size: float) -> str:
    """Return a size in decimal units, as disks are sold."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size:.0f} bytes"


def temporary_folder() -> Path:
    """Return the folder for temporary files, as `tempfile.gettempdir` does where that fails: on a full disk."""
    named = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
    return Path(tempfile.tempdir or named)


def folder_size(folder: str | Path) -> int:
    """Return the bytes of all files in a folder; 0 if there is none."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # It was deleted meanwhile.
                continue
    return total
