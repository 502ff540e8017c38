"""The store: assets on disk. An asset is complete, or readers do not see it.

A stage fills staging folders. `publish` moves them into their places with a journal (`publication.py`), and the
manifest, which appears last, marks the asset as complete. Who may do so is decided by `leases.py`. Does not import
Dagster.
"""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from tokenuq_ml.atomic_files import fsync_tree
from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.object_store.address import CHECKPOINTS
from tokenuq_ml.tables.integrity import file_difference, unlisted
from tokenuq_ml.tables.partitions import PublishedFile, manifest_names, why_not_file
from tokenuq_pipeline.runtime.journal import ONE_FILE_SYSTEM, PUBLISHING, Outcome
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.manifest import FileEntry, Manifest
from tokenuq_pipeline.runtime.owners import Owner, beating, file_time
from tokenuq_pipeline.runtime.places import MANIFESTS, check_asset_name, check_no_link, linked
from tokenuq_pipeline.runtime.publication import INTERRUPTED, is_interrupted, publish, recover
from tokenuq_pipeline.runtime.trash import Trash

STAGING = ".staging"
UNKNOWN_KEPT_S = 24 * 3600.0
"""How long a staging folder stays whose name says nothing of its owner: another version may have named it."""


class Store:
    """The folder `$TOKENUQ_HOME`. All paths in manifests and configurations of assets are relative to it."""

    def __init__(self, home: str | Path):
        self.home = Path(home).expanduser().resolve()

    def path(self, relative: str) -> Path:
        """Return the absolute path of a path in the store."""
        return self.home / relative

    @property
    def leases(self) -> Leases:
        """Return the leases of the store's assets."""
        return Leases(self.home)

    def work_dir(self, asset: str) -> Path:
        """Create and return the folder for the checkpoints of the stage that makes `asset`; it outlives the run."""
        folder = self.home / CHECKPOINTS / check_asset_name(asset)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Create an empty folder on the store's file system and delete it at the end of the block.

        Its name holds this process's `Owner`, whose heartbeat keeps others from deleting it.
        """
        with beating(self.home):
            self.clean_staging()
            Trash(self.home).empty_old()
            folder = self.home / STAGING / f"{Owner.current()}+{uuid.uuid4().hex[:8]}"
            folder.mkdir(parents=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def clean_staging(self) -> list[str]:
        """Delete the staging folders of dead processes and return their names.

        What has another name than they, and is old, goes to the trash. What lies behind a symbolic link stays.
        """
        removed = []
        for folder in () if linked(self.home, [STAGING]) else (self.home / STAGING).glob("*"):
            owner = _owner_of(folder.name)
            if self._is_in_use(folder, owner):
                continue
            if owner is None:
                with contextlib.suppress(OSError, ValueError):
                    Trash(self.home).put([f"{STAGING}/{folder.name}"])
            else:
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
        return removed

    def check_publishable(self, outputs: Iterable[str], staging: Path) -> None:
        """Check that folders can be moved from `staging` to their places in one step, by moving an empty one.

        Devices would not tell: one disk that is mounted twice has one number, and a layered file system refuses to move
        some of its folders.

        Args:
            outputs: folders, relative to the store.
            staging: where they will be made.

        Raises:
            InputError: a place is on another file system, or behind a symbolic link.
            OSError: it cannot be written.
        """
        outputs = list(outputs)
        self._refuse_links(outputs)
        # A publication also goes through the folders of journals and manifests.
        own = (self.home / PUBLISHING, self.home / MANIFESTS)
        for parent in (*sorted({self.path(output).parent for output in outputs}), *own):
            parent.mkdir(parents=True, exist_ok=True)
            probe = staging / f".probe-{uuid.uuid4().hex[:8]}"
            probe.mkdir()
            try:
                moved = parent / probe.name
                os.rename(probe, moved)
                moved.rmdir()
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise InputError(_other_file_system(parent, self.home)) from None
        for place in filter(os.path.ismount, map(self.path, outputs)):
            raise InputError(_other_file_system(place, self.home))

    def settle(self, staged: Mapping[str, Path], outputs: Mapping[str, str]) -> list[FileEntry]:
        """Flush staged folders to the disk, and return their files as the manifest will list them.

        Libraries that write by temporary files leave them readable for their user only. Here every file gets the rights
        that the umask gives to new ones, which are those of the staged folder.

        Done before `publish`, so that the store's lock is held for a moment only.

        Args:
            staged: output name -> folder.
            outputs: output name -> place, relative to the store.
        """
        for folder in staged.values():
            _open_to_umask(folder)
            fsync_tree(folder)
        return [entry for name, place in outputs.items() for entry in _files(staged[name], place)]

    def publish(self, manifest: Manifest, staged: Mapping[str, Path]) -> None:
        """Replace an asset, or publish its first version. The caller holds its lease and the store's lock.

        A crash at any moment leaves the old version or the new one, or neither until `recover` is called.

        Args:
            manifest: of the new version, with what `settle` has returned.
            staged: output name -> folder.

        Raises:
            InputError: a symbolic link has appeared on the way to a place.
            OSError: the system does not allow a step.
        """
        publish(self.home, manifest, staged)

    def recover(self, held: Collection[str] = ()) -> dict[str, Outcome]:
        """Complete or undo publications that were interrupted; return what became of them, by asset.

        Args:
            held: assets whose lease the caller holds; those that others are making are left alone.
        """
        return recover(self.home, held)

    def manifest_age(self, asset: str) -> float | None:
        """Return the seconds since the manifest of `asset` was written, by the file system; None without one."""
        try:
            return file_time(self.home) - self._manifest_path(asset).stat().st_mtime
        except OSError:
            return None

    def read_manifest(self, asset: str) -> Manifest | None:
        """Return the manifest of `asset`; None if there is none (never made, or being replaced) or it is damaged."""
        try:
            return Manifest.read(self._manifest_path(asset))
        except (FileNotFoundError, ValueError):
            return None

    def damaged_manifest(self, asset: str) -> str | None:
        """Return how the manifest of `asset` is damaged, and what repairs it; None if it is not, or there is none."""
        try:
            Manifest.read(self._manifest_path(asset))
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)
        return None

    def data_version(self, asset: str) -> str | None:
        """Return the data version in the manifest of `asset`, or None."""
        manifest = self.read_manifest(asset)
        return manifest.data_version if manifest else None

    def incomplete_because(self, asset: str) -> str | None:
        """Return why `asset` is not complete: no manifest, a damaged one, or a file that is missing or cut short.

        Compares sizes only. `problems` reads the files.

        Returns:
            One sentence, or None if the asset is complete.
        """
        try:
            manifest = Manifest.read(self._manifest_path(asset))
        except FileNotFoundError:
            return INTERRUPTED if is_interrupted(self.home, asset) else "has no manifest"
        except ValueError as error:
            return f"has a damaged manifest, {error}"
        wrong = (why_not_file(self.home, file.path, file.bytes) for file in manifest.files)
        return next((self._relative(sentence) for sentence in wrong if sentence), None)

    def is_complete(self, asset: str) -> bool:
        """Return whether `asset` has a manifest whose files all exist with the recorded sizes."""
        return self.incomplete_because(asset) is None

    def assets(self) -> list[str]:
        """Return the names of all assets that have a manifest, damaged or not."""
        return manifest_names(self.home)

    def problems(self, asset: str) -> list[str]:
        """Read every file of `asset` and return how the files differ from what the manifest recorded."""
        try:
            manifest = Manifest.read(self._manifest_path(asset))
        except FileNotFoundError:
            return ["has no manifest"]
        except (OSError, ValueError) as error:
            return [f"has no readable manifest: {error}"]
        records = (PublishedFile(asset, file.path, file.bytes, file.sha256) for file in manifest.files)
        wrong = [sentence for file in records if (sentence := file_difference(self.home, file))]
        extra = [f"{path}: does not belong to the asset" for path in self.extra_files(asset)]
        return [self._relative(sentence) for sentence in (*wrong, *extra)]

    def extra_files(self, asset: str) -> list[Path]:
        """Return the files in the folders of `asset` that its manifest does not list. Lists folders, reads no file."""
        manifest = self.read_manifest(asset)
        if manifest is None:
            return []
        listed = [self.home / file.path for file in manifest.files]
        return [path for output in manifest.outputs.values() for path in unlisted(self.path(output), listed)]

    def forget(self, asset: str) -> None:
        """Delete the manifest of `asset`, which is incomplete until the next one is written.

        A folder in the manifest's place goes to the trash.

        Raises:
            ValueError: the manifest is behind a symbolic link, or the name is not an asset's.
        """
        path = self._manifest_path(asset)
        check_no_link(self.home, [path.parent.relative_to(self.home).as_posix()])
        if path.is_dir() and not path.is_symlink():
            Trash(self.home).put([path.relative_to(self.home).as_posix()])
        else:
            path.unlink(missing_ok=True)

    def _relative(self, sentence: str) -> str:
        """Return a sentence with paths in the store as the store's manifests write them."""
        return sentence.replace(f"{self.home}/", "")

    def _manifest_path(self, asset: str) -> Path:
        return self.home / MANIFESTS / f"{check_asset_name(asset)}.json"

    def _refuse_links(self, places: Iterable[str]) -> None:
        if (link := linked(self.home, places)) is not None:
            raise InputError(f"{link} is a symbolic link: {ONE_FILE_SYSTEM}")

    def _is_in_use(self, folder: Path, owner: Owner | None) -> bool:
        try:
            age = file_time(self.home) - folder.stat().st_mtime
        except OSError:
            return True
        return owner.is_alive(self.home, age) if owner else age <= UNKNOWN_KEPT_S


def _owner_of(name: str) -> Owner | None:
    """Return the owner that the name of a staging folder holds. Earlier versions: `<pid>-<start time>-<id>`."""
    return Owner.parse(name.rpartition("+")[0] if "+" in name else "-".join(name.split("-")[:2]))


def _files(folder: Path, place: str) -> Iterator[FileEntry]:
    """Yield the files of a folder as they are listed once the folder is at `place`."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, digest = f"{place}/{path.relative_to(folder).as_posix()}", sha256_of(path)
        yield FileEntry(path=name, bytes=path.stat().st_size, sha256=digest)


def _open_to_umask(folder: Path) -> None:
    rights = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(rights if path.is_dir() else rights & 0o666)


def _other_file_system(place: Path, home: Path) -> str:
    return f"{place} is on another file system than {home / STAGING}: {ONE_FILE_SYSTEM}"
