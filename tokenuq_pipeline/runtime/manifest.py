"""The manifest of an asset: what it was made from and with, and every file of it.

A manifest is stored at `.manifests/<asset>.json`. It appears after the files, so an asset with a manifest whose files
all exist is complete. It holds a digest of itself, so a manifest that was changed is found.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.json_files import damaged, read_json
from tokenuq_ml.stages.request import CheckOutcome, first_error
from tokenuq_ml.tables.partitions import DIGEST, FORGET, check_digest, digest_of
from tokenuq_pipeline.runtime.places import MANIFESTS, check_no_link, check_places, check_plots, manifest_place


class FileEntry(BaseModel):
    """One file of an asset, as it was published."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: str
    """Relative to the store."""
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Provenance(BaseModel):
    """The run that made an asset, and the software that it ran with. None: not recorded."""

    model_config = ConfigDict(frozen=True)

    run_id: str | None = None
    made_at: str | None = None
    """UTC, ISO 8601, to the second."""
    seed: int | None = None
    packages: dict[str, str] = {}
    """Versions by package."""
    git_commit: str | None = None
    git_dirty: bool | None = None


class Manifest(BaseModel):
    """What the store records of one asset.

    Manifests of earlier versions have no plots, checks or provenance.
    """

    model_config = ConfigDict(frozen=True)

    asset: str
    data_version: str
    """Hash of the content."""
    code_version: str
    """`<revision>-<hash of the fields>`."""
    spec_hash: str
    fields: dict[str, Any]
    """The fields of the configuration that the stage read."""
    input_data_versions: dict[str, str | None]
    """Asset -> the data version that was read; of `files/...` and `curation/...`, the fingerprint. None: it had none.

    Manifests of earlier versions hold none of the user's own files.
    """
    metrics: dict[str, float | int | str | bool | None]
    plots: dict[str, str] = {}
    """Title -> PNG file, as `<output>/<file>`."""
    checks: dict[str, CheckOutcome] = {}
    """Checks that the stage itself evaluated, by name."""
    provenance: Provenance = Provenance()
    outputs: dict[str, str]
    """Output name -> folder, relative to the store."""
    files: list[FileEntry]

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest, and check that it is the one of its path's name and refers to that asset's files only.

        Args:
            path: `<store>/.manifests/<asset>.json`.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: the file is damaged; the message says where, and what repairs it.
        """
        return cls._read(path, None)

    @classmethod
    def read_of(cls, asset: str, path: Path) -> "Manifest":
        """Read the manifest of an asset from any path. Symbolic links on the way to its files are not looked for.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: the file is damaged.
        """
        return cls._read(path, asset)

    @classmethod
    def _read(cls, path: Path, asset: str | None) -> "Manifest":
        content = read_json(path, FORGET)
        try:
            manifest = cls.model_validate(content)
            if asset is None:
                home, asset = _home_and_asset(path)
                manifest._check(asset)
                places = [*manifest.outputs.values(), *(file.path for file in manifest.files)]
                check_no_link(home, [manifest_place(asset), *places])
            else:
                manifest._check(asset)
        except ValidationError as error:
            raise damaged(path, first_error(error), FORGET) from None
        except (ValueError, OSError) as error:
            raise damaged(path, str(error), FORGET) from None
        # Last: what is wrong with a field says more than that something is.
        check_digest(path, content)
        return manifest

    def _check(self, asset: str) -> None:
        if self.asset != asset:
            raise ValueError(f"is the manifest of {self.asset!r}, not of {asset}")
        files = [file.path for file in self.files]
        check_places(self.asset, self.outputs, files)
        check_plots(self.outputs, self.plots.values())
        if self.outputs and not files:
            raise ValueError("lists no file")

    def content(self) -> bytes:
        """Return what the file holds: the fields, and a digest of them."""
        content = self.model_dump()
        content["provenance"] = self.provenance.model_dump(exclude_none=True, exclude_unset=True)
        content[DIGEST] = digest_of(content)
        return json.dumps(content, indent=1).encode()

    def write(self, path: Path) -> None:
        """Write the manifest with its digest, atomically and durably."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(self.content())


def _home_and_asset(path: Path) -> tuple[Path, str]:
    """Return the store and the asset that a manifest's path names."""
    parts = path.parts
    if MANIFESTS not in parts:
        raise ValueError(f"is in no folder {MANIFESTS} of a store")
    # The last one: a store may lie in a folder of this name, an asset cannot.
    depth = len(parts) - parts[::-1].index(MANIFESTS)
    return Path(*parts[: depth - 1]), "/".join(parts[depth:]).removesuffix(".json")
