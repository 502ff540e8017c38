"""The journal of a publication: its folder, the steps of a publication, and the way on or back after a crash.

Use `publication.py`, whose page says what the folder holds.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tokenuq_ml.atomic_files import fsync, make_folders, move_into_place
from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.tables.integrity import unlisted
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.places import check_asset_name, is_asset_name, linked, manifest_place
from tokenuq_pipeline.runtime.trash import Trash

PUBLISHING = ".publishing"
ONE_FILE_SYSTEM = (
    "results are moved into place in one step, so the store has to be one tree of folders on one file system; "
    "put a folder there, or move the whole store (TOKENUQ_HOME)"
)


class Outcome(StrEnum):
    """What became of an interrupted publication; the values end a sentence that begins with the asset."""

    COMPLETED = "its publication was interrupted, and has been completed"
    ROLLED_BACK = "its publication was interrupted; the new files are damaged, and the version before is kept"
    SUPERSEDED = "its publication was interrupted; another version is in the store, and its files went to the trash"
    SET_ASIDE = "its publication was interrupted, and its files, which are no version of it, went to the trash"


@dataclass
class Journal:
    """One publication."""

    home: Path
    asset: str
    path: Path

    @property
    def is_begun(self) -> bool:
        """Return whether it holds the new version, complete."""
        return (self.path / "manifest.json").is_file()

    def begin(self, manifest: Manifest, staged: Mapping[str, Path]) -> None:
        """Put the new version into the journal, its manifest last. Changes nothing outside."""
        self._refuse_links(manifest)
        make_folders(self._published.parent)
        for place in manifest.outputs.values():
            make_folders((self.home / place).parent)
        make_folders(self.path / "new")
        for output in manifest.outputs:
            os.rename(staged[output], self.path / "new" / output)
        fsync(self.path / "new")
        previous = _content(self._published)
        if previous is not None:
            with open(self.path / "previous.json", "xb") as file:
                file.write(previous)
                file.flush()
                os.fsync(file.fileno())
        manifest.write(self.path / "manifest.json")

    def complete(self, new: Manifest, found: Mapping[str, Path]) -> None:
        """Replace the old version by the new one.

        Args:
            new: the manifest of the new version.
            found: output -> the folder of the new version, wherever it is.
        """
        self._refuse_links(new)
        make_folders(self._published.parent)
        self._hide()
        self._move_into_place(new, found)
        self._move_manifest("manifest.json")
        self._delete()

    def recover(self) -> Outcome | None:
        """Complete the publication or undo it; return None if it had not begun, or another process does it.

        Raises:
            InputError: a symbolic link leads to a place of the asset.
            OSError: the system does not allow a step.
        """
        claimed = new_path(self.home, self.asset)
        try:
            os.rename(self.path, claimed)
        except FileNotFoundError:
            return None
        self.path = claimed
        if not self.is_begun:
            self._delete()
            return None
        present, previous = _content(self._published), _content(self.path / "previous.json")
        if present is not None and present != previous:
            # By a version of tokenuq that knows no journals; or a crash came at the end of `_roll_back`.
            return self._set_aside(Outcome.SUPERSEDED)
        new, old = self._read(self.path / "manifest.json"), self._read(self.path / "previous.json")
        if new is not None and (found := self._find(new)) is not None:
            self.complete(new, found)
            return Outcome.COMPLETED
        if old is not None and (found := self._find(old)) is not None:
            self._roll_back(old, found, new.outputs if new else {}, hidden=present is None)
            return Outcome.ROLLED_BACK
        return self._set_aside(Outcome.SET_ASIDE)

    @property
    def _published(self) -> Path:
        return self.home / manifest_place(self.asset)

    def _hide(self) -> None:
        """Take the old manifest away; whatever else is in its place goes to the trash."""
        if _content(self._published) is not None or self._published.is_symlink():
            os.replace(self._published, self.path / "previous.json")
            fsync(self._published.parent)
            fsync(self.path)
        elif os.path.lexists(self._published):
            Trash(self.home).put([manifest_place(self.asset)])

    def _move_into_place(self, manifest: Manifest, found: Mapping[str, Path]) -> None:
        for output, place in manifest.outputs.items():
            if found[output] != self.home / place:
                make_folders((self.home / place).parent)
                move_into_place(found[output], self.home / place, self._aside(output))

    def _move_manifest(self, name: str) -> None:
        os.rename(self.path / name, self._published)
        fsync(self._published.parent)
        fsync(self.path)

    def _roll_back(
        self, old: Manifest, found: Mapping[str, Path], new_outputs: Mapping[str, str], hidden: bool
    ) -> None:
        self._refuse_links(old)
        self._move_into_place(old, found)
        for output, place in new_outputs.items():
            if output not in old.outputs and os.path.lexists(self.home / place):
                make_folders(self.path / "old")
                os.rename(self.home / place, self._aside(output))
                fsync((self.home / place).parent)
        if hidden:
            self._move_manifest("previous.json")
        self._delete()

    def _find(self, manifest: Manifest) -> dict[str, Path] | None:
        """Return where each folder of a version is; None if one is nowhere as its manifest records it."""
        found = {}
        for output, place in manifest.outputs.items():
            folders = [self.home / place, self.path / "new" / output, *(self.path / "old").glob(f"{output}.*")]
            folder = next((folder for folder in folders if _holds(folder, place, manifest)), None)
            if folder is None:
                return None
            found[output] = folder
        return found

    def _read(self, path: Path) -> Manifest | None:
        """Return a manifest of the journal; None if there is none, or it is damaged.

        Raises:
            OSError: it cannot be read now.
        """
        try:
            path.read_bytes()
            return Manifest.read_of(self.asset, path)
        except (FileNotFoundError, ValueError):
            return None

    def _aside(self, output: str) -> Path:
        return self.path / "old" / f"{output}.{secrets.token_hex(4)}"

    def _refuse_links(self, manifest: Manifest) -> None:
        places = [PUBLISHING, *manifest.outputs.values(), str(Path(manifest_place(self.asset)).parent)]
        if (link := linked(self.home, places)) is not None:
            raise InputError(f"{link} is a symbolic link: {ONE_FILE_SYSTEM}")

    def _set_aside(self, outcome: Outcome) -> Outcome:
        Trash(self.home).put([self.path.relative_to(self.home).as_posix()])
        return outcome

    def _delete(self) -> None:
        """Delete the journal. First what makes it one: what is half deleted must not be recovered."""
        if self.is_begun:
            (self.path / "manifest.json").unlink()
            fsync(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def new_path(home: Path, asset: str) -> Path:
    """Return a path for a new journal."""
    return home / PUBLISHING / f"{check_asset_name(asset).replace('/', '.')}+{secrets.token_hex(8)}"


def journals(home: Path, assets: Collection[str] | None = None) -> list[Journal]:
    """Return the journals of some assets, by default all, oldest first. Other names in the folder are not ours."""
    if linked(home, [PUBLISHING]) is not None:
        return []
    return sorted(_listed(home, assets), key=lambda journal: _time(journal.path))


def _listed(home: Path, assets: Collection[str] | None) -> Iterator[Journal]:
    try:
        names = os.listdir(home / PUBLISHING)
    except OSError:
        return
    for name in names:
        asset = name.rpartition("+")[0].replace(".", "/")
        if is_asset_name(asset) and (assets is None or asset in assets):
            yield Journal(home, asset, home / PUBLISHING / name)


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _content(path: Path) -> bytes | None:
    """Return what a regular file holds; None if there is none, or it cannot be read."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
    except OSError:
        return None


def _holds(folder: Path, place: str, manifest: Manifest) -> bool:
    """Return whether a folder holds what a manifest records of the folder `place`, and nothing more.

    Raises:
        OSError: something cannot be read now. Nothing is decided then: it may be readable at the next start.
    """
    files = {
        folder / file.path.removeprefix(f"{place}/"): file
        for file in manifest.files
        if file.path.startswith(f"{place}/")
    }
    if folder.is_symlink() or not folder.is_dir() or unlisted(folder, files):
        return False
    return all(_is_file(path, file.bytes) and sha256_of(path) == file.sha256 for path, file in files.items())


def _is_file(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
