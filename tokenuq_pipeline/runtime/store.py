"""The store: assets on disk. An asset is complete, or readers do not see it.

A stage fills staging folders. `publish` swaps each into its place in one step, and the manifest, which is written last,
marks the asset as complete. Does not import Dagster.
"""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenuq_ml.atomic_files import replace_folder
from tokenuq_pipeline.runtime.manifest import FileEntry, Manifest
from tokenuq_pipeline.runtime.places import MANIFESTS, check_asset_name, check_no_link
from tokenuq_pipeline.runtime.processes import is_alive, process_name

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
        except (FileNotFoundError, NotADirectoryError, ValueError):
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
        except (FileNotFoundError, NotADirectoryError):
            return "has no manifest"
        except ValueError as error:
            return f"has a damaged manifest, {error}"
        for file in manifest.files:
            path = self.path(file.path)
            if not path.is_file():
                return f"{file.path} is missing"
            if path.stat().st_size != file.bytes:
                return f"{file.path} has {path.stat().st_size} bytes, not {file.bytes}"
        return None

    def is_complete(self, asset: str) -> bool:
        """Return whether `asset` has a manifest whose files all exist with the recorded sizes."""
        return self.incomplete_because(asset) is None

    def assets(self) -> list[str]:
        """Return the names of all assets that have a manifest."""
        root = self.home / MANIFESTS
        return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.json"))

    def problems(self, asset: str) -> list[str]:
        """Read every file of `asset` and return how the files differ from what the manifest recorded."""
        try:
            manifest = Manifest.read(self._manifest_path(asset))
        except (OSError, ValueError) as error:
            return [f"has no readable manifest: {error}"]
        found = {file.path: file for file in self._files(manifest.outputs.values())}
        problems = []
        for file in manifest.files:
            now = found.pop(file.path, None)
            if now is None:
                problems.append(f"{file.path}: is missing")
            elif now.sha256 != file.sha256:
                problems.append(f"{file.path}: its SHA-256 begins with {now.sha256[:12]}, not {file.sha256[:12]}")
        return problems + [f"{path}: does not belong to the asset" for path in found]

    def forget(self, asset: str) -> None:
        """Delete the manifest of `asset`, which is incomplete until the next one is written.

        Raises:
            ValueError: the manifest is behind a symbolic link.
        """
        path = self._manifest_path(asset)
        check_no_link(self.home, [path.parent.relative_to(self.home).as_posix()])
        path.unlink(missing_ok=True)

    def _manifest_path(self, asset: str) -> Path:
        return self.home / MANIFESTS / f"{check_asset_name(asset)}.json"

    def _files(self, outputs: Iterable[str]) -> Iterator[FileEntry]:
        for output in outputs:
            for path in sorted(path for path in self.path(output).rglob("*") if path.is_file()):
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield FileEntry(path=path.relative_to(self.home).as_posix(), bytes=path.stat().st_size, sha256=digest)
