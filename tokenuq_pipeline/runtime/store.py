"""The store: assets on disk. An asset is complete, or readers do not see it.

A stage fills staging folders. `publish` swaps each into its place in one step, and the manifest, which is written last,
marks the asset as complete. Does not import Dagster.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenuq_ml.atomic_files import replace_folder
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.tables.integrity import file_difference, unlisted
from tokenuq_ml.tables.partitions import PublishedFile, manifest_names, why_not_file
from tokenuq_pipeline.runtime.manifest import FileEntry, Manifest
from tokenuq_pipeline.runtime.places import MANIFESTS, check_asset_name, check_no_link
from tokenuq_pipeline.runtime.processes import is_alive, process_name
from tokenuq_pipeline.runtime.trash import Trash

CHECKPOINTS = ".checkpoints"


class Store:
    """The folder `$TOKENUQ_HOME`. All paths in manifests and configurations of assets are relative to it."""

    def __init__(self, home: str | Path):
        self.home = Path(home).expanduser().resolve()

    def path(self, relative: str) -> Path:
        """Return the absolute path of a path in the store."""
        return self.home / relative

    def work_dir(self, asset: str) -> Path:
        """Create and return the folder for the checkpoints of the stage that makes `asset`; it outlives the run."""
        folder = self.home / CHECKPOINTS / check_asset_name(asset)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Create an empty folder on the store's file system and delete it at the end of the block."""
        self.clean_staging()
        folder = self.home / ".staging" / f"{process_name()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean_staging(self) -> list[str]:
        """Delete the staging folders of dead processes and return their names."""
        removed = []
        for folder in (self.home / ".staging").glob("*"):
            if not is_alive("-".join(folder.name.split("-")[:2])):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    def publish(self, staged: str | Path, relative: str) -> Path:
        """Move the folder `staged` to a path in the store, in one step; an older version is replaced and deleted.

        The content is flushed to the disk first. Where the step fails, the older version stays.
        """
        final = self.path(relative)
        final.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(staged, final)
        return final

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Mark an asset as complete.

        Args:
            manifest: everything but the files, which are listed, measured and hashed here.

        Returns:
            The manifest with its files.
        """
        complete = manifest.model_copy(update={"files": list(self._files(manifest.outputs.values()))})
        complete.write(self._manifest_path(manifest.asset))
        return complete

    def read_manifest(self, asset: str) -> Manifest | None:
        """Return the manifest of `asset`; None if there is none (never made, or being replaced) or it is damaged."""
        try:
            return Manifest.read(self._manifest_path(asset))
        except (FileNotFoundError, ValueError):
            return None

    def damaged_manifest(self, asset: str) -> str | None:
        """Return how the manifest of `asset` is damaged, and what mends it; None if it is not, or if there is none."""
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
            return "has no manifest"
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

    def _files(self, outputs: Iterable[str]) -> Iterator[FileEntry]:
        for output in outputs:
            for path in sorted(path for path in self.path(output).rglob("*") if path.is_file()):
                name, digest = path.relative_to(self.home).as_posix(), sha256_of(path)
                yield FileEntry(path=name, bytes=path.stat().st_size, sha256=digest)
