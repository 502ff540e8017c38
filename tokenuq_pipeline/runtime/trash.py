"""The trash of a store: what `tokenuq prune` took out of it, kept in `.trash/` for a week.

An entry `.trash/<time>-<id>/` holds files and folders under the paths that they had in the store, the manifest last.
Each arrives by one rename and leaves by one, so it is complete in the store or complete in the trash. Nothing but this
module reads `.trash`: queries, `status` and `verify` look at `.manifests` and at the folders of assets.
"""

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tokenuq_ml.atomic_files import fsync
from tokenuq_ml.disk import folder_size
from tokenuq_pipeline.runtime.places import MANIFESTS, check_no_link, is_asset_name

TRASH = ".trash"
KEPT_FOR = timedelta(days=7)
TIME = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{8}(\.deleting)?")
DELETING = ".deleting"


@dataclass(frozen=True)
class Entry:
    """What one asset left in the trash."""

    path: Path
    put_at: datetime
    is_being_deleted: bool

    @property
    def bytes(self) -> int:
        """Return the size of its files."""
        return folder_size(self.path)

    @property
    def assets(self) -> list[str]:
        """Return the assets whose manifest it holds: those that can be restored."""
        root = self.path / MANIFESTS
        names = (
            path.relative_to(root).as_posix().removesuffix(".json") for path in root.rglob("*.json") if path.is_file()
        )
        return sorted(filter(is_asset_name, names))

    @property
    def content(self) -> str:
        """Return what it holds, for a listing: assets, or else the path of something in it."""
        if self.assets:
            return ", ".join(self.assets)
        for root, folders, files in os.walk(self.path):
            if files or not folders:
                return os.path.relpath(root, self.path) if root != str(self.path) else "nothing"
        return "nothing"

    def holds(self, relative: str) -> bool:
        """Return whether it holds something that had this path in the store."""
        return os.path.lexists(self.path / relative)


class Trash:
    """The folder `.trash` of a store."""

    def __init__(self, home: Path):
        self.home, self.path = home, home / TRASH

    def entries(self) -> list[Entry]:
        """Return what can be restored, oldest first."""
        return [entry for entry in self.all() if not entry.is_being_deleted]

    @property
    def bytes(self) -> int:
        """Return the size of everything that it holds."""
        return sum(entry.bytes for entry in self.all())

    def put(self, places: Sequence[str]) -> Path:
        """Move paths out of the store, in this order, into one entry.

        A crash leaves the entry half filled. The next call with the same paths moves the rest into it.

        Args:
            places: relative to the store; the manifest is the last. Those that do not exist are skipped.

        Raises:
            ValueError: a path leads through a symbolic link.
            OSError: a path cannot be moved, because it is on another file system or another user's.
        """
        present = [place for place in places if os.path.lexists(self.home / place)]
        check_no_link(self.home, [TRASH, *present])
        entry = self._half_filled(places, present) or self._new_entry()
        for place in present:
            move(self.home / place, entry / place)
        return entry

    def take(self, entry: Entry, places: Sequence[str]) -> None:
        """Move paths back into the store, in this order, and delete the entry once it is empty.

        Raises:
            ValueError: a path leads through a symbolic link.
            OSError: a path exists in the store, or cannot be moved.
        """
        places = [place for place in places if entry.holds(place)]
        check_no_link(self.home, [*places, *(f"{TRASH}/{entry.path.name}/{place}" for place in places)])
        for place in places:
            move(entry.path / place, self.home / place)
        if not folder_has_files(entry.path):
            self.delete(entry.path)

    def empty(self, before: datetime | None = None) -> list[Entry]:
        """Delete entries for good.

        Args:
            before: only those that were put there before this time; by default all.

        Returns:
            The entries that were deleted. Those of other users, which this one may not delete, are left out.
        """
        if not self.path.is_dir() or self.path.is_symlink():
            return []
        old = [entry for entry in self.all() if entry.is_being_deleted or before is None or entry.put_at < before]
        return [entry for entry in old if self.delete(entry.path)]

    def empty_old(self) -> list[Entry]:
        """Delete what has been in the trash for longer than a week, and return it."""
        return self.empty(datetime.now(UTC) - KEPT_FOR)

    def all(self) -> list[Entry]:
        """Return everything that this module has put there, oldest first; other files in the folder are not ours."""
        try:
            paths = sorted(path for path in self.path.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:
            return []
        return [entry for path in paths if (entry := _entry(path)) is not None]

    def _new_entry(self) -> Path:
        entry = self.path / f"{datetime.now(UTC).strftime(TIME)}-{secrets.token_hex(4)}"
        entry.mkdir(parents=True)
        return entry

    def _half_filled(self, places: Sequence[str], present: Sequence[str]) -> Path | None:
        """Return the last entry that holds some of these paths, but neither the last one nor one that is to come."""
        for entry in reversed(self.entries()):
            if not any(map(entry.holds, [places[-1], *present])) and any(map(entry.holds, places)):
                return entry.path
        return None

    def delete(self, path: Path) -> bool:
        """Delete an entry; return whether it is gone. Renamed first: what is half deleted cannot be restored."""
        try:
            if not path.name.endswith(DELETING):
                path = path.rename(path.with_name(path.name + DELETING))
            shutil.rmtree(path)
        except FileNotFoundError:  # Another process deletes it too.
            return False
        except OSError:
            return not os.path.lexists(path)
        return True


def move(source: Path, target: Path) -> None:
    """Move a file or folder by one rename, durably. The target's folders are created.

    Raises:
        FileExistsError: the target exists.
        OSError: the target is on another file system, or the rename failed.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    fsync(target.parent)
    fsync(source.parent)


def folder_has_files(folder: Path) -> bool:
    """Return whether anything but folders is in a folder."""
    return any(files for _, _, files in os.walk(folder))


def _entry(path: Path) -> Entry | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        named = datetime.strptime(match[1], TIME).replace(tzinfo=UTC)
        # The earlier of two clocks: with one that was ahead, an entry would stay for longer.
        return Entry(path, min(named, datetime.fromtimestamp(path.stat().st_mtime, UTC)), bool(match[2]))
    except (ValueError, OSError):
        return None
