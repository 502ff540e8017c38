"""The store: assets on disk, each complete or not visible at all.

A stage fills staging folders; `publish` swaps each into its place in one step. The manifest, written last, marks
the asset as complete. Knows paths and bytes, not Dagster or the meaning of a table.
"""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.atomic_files import atomic_write, replace_folder
from tokenuq_pipeline.runtime.processes import is_alive, process_name


class Store:
    """The folder `$TOKENUQ_HOME`. Places are paths relative to it."""

    def __init__(self, home: str | Path):
        self.home = Path(home).expanduser().resolve()

    def path(self, place: str) -> Path:
        """Where `place` is on disk."""
        return self.home / place

    def work_dir(self, asset: str) -> Path:
        """Private to the stage that makes `asset`; kept between runs, for checkpoints."""
        folder = self.home / ".checkpoints" / asset
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder on the store's file system, gone at the end whatever happens."""
        self.clean_staging()
        folder = self.home / ".staging" / f"{process_name()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean_staging(self) -> list[str]:
        """Remove what dead processes left behind; returns the names of the removed folders."""
        removed = []
        for folder in (self.home / ".staging").glob("*"):
            if not is_alive("-".join(folder.name.split("-")[:2])):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    def publish(self, staged: str | Path, place: str) -> Path:
        """Put the folder `staged` at `place`, in one step, in place of what is there.

        Everything is on the disk before it can be seen. Where the step fails, the old
        content stands. `staged` is gone afterwards.
        """
        staged, final = Path(staged), self.path(place)
        final.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(staged, final)
        return final

    def write_manifest(
        self,
        asset: str,
        *,
        data_version: str,
        code_version: str,
        fields: dict,
        spec_hash: str,
        outputs: dict[str, str],
        inputs: dict[str, str | None],
        metrics: dict,
        plots: dict[str, str] | None = None,
        checks: dict | None = None,
        provenance: dict | None = None,
    ) -> dict:
        """Say that `asset` is whole: what it was made from and with, and every file of it with size and SHA-256."""
        manifest = {
            "asset": asset,
            "data_version": data_version,
            "code_version": code_version,
            "spec_hash": spec_hash,
            "fields": fields,
            "input_data_versions": inputs,
            "metrics": metrics,
            "plots": plots or {},
            "checks": checks or {},
            "provenance": provenance or {},
            "outputs": outputs,
            "files": [file for place in outputs.values() for file in self._files(place)],
        }
        path = self._manifest_path(asset)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        return manifest

    def read_manifest(self, asset: str) -> dict | None:
        """The manifest of `asset`; None where it is not whole: never made, or half replaced."""
        try:
            return json.loads(self._manifest_path(asset).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None

    def is_complete(self, asset: str) -> bool:
        """Whether `asset` has a manifest whose files are all there, in size."""
        manifest = self.read_manifest(asset)
        if manifest is None:
            return False
        sizes = ((self.path(file["path"]), file["bytes"]) for file in manifest["files"])
        return all(path.is_file() and path.stat().st_size == size for path, size in sizes)

    def assets(self) -> list[str]:
        """The names of all assets that have a manifest."""
        root = self.home / ".manifests"
        return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.json"))

    def problems(self, asset: str) -> list[str]:
        """What of an asset's files is not as its manifest recorded it; every file is read."""
        manifest = self.read_manifest(asset)
        if manifest is None:
            return ["has no readable manifest"]
        found = {file["path"]: file for place in manifest["outputs"].values() for file in self._files(place)}
        wrong = []
        for file in manifest["files"]:
            now = found.pop(file["path"], None)
            if now is None:
                wrong.append(f"{file['path']}: is missing")
            elif now["sha256"] != file["sha256"]:
                wrong.append(f"{file['path']}: its SHA-256 begins with {now['sha256'][:12]}, not {file['sha256'][:12]}")
        return wrong + [f"{path}: is not of the asset" for path in found]

    def forget(self, asset: str) -> None:
        """Drop the manifest of `asset`: from now on, and until the next, it is not whole."""
        self._manifest_path(asset).unlink(missing_ok=True)

    def _manifest_path(self, asset: str) -> Path:
        return self.home / ".manifests" / f"{asset}.json"

    def _files(self, place: str) -> Iterator[dict]:
        folder = self.path(place)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield {"path": path.relative_to(self.home).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
