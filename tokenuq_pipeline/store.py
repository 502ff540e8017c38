"""Where things lie on disk, and how they get there: staged, then published whole, then recorded.

Readers never see half an output: it is filled beside the store's tables and swapped in by
one rename. Knows nothing of Dagster's runs or of what the files mean.
"""

import ctypes
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from tokenuq_ml.tables import read_table
from tokenuq_pipeline.nodes import Node

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True)
class Manifest:
    """What the store knows of a published asset; written last, so that its presence means wholeness."""

    data_version: str
    code_version: str
    spec_hash: str
    fields: dict
    inputs: dict[str, str]
    """Asset label -> data version, of what it was made from."""
    metrics: dict
    files: dict[str, dict] = field(default_factory=dict)
    """Path inside the store -> size in bytes and sha256."""


class Store:
    """A folder of published assets."""

    def __init__(self, home: str | Path):
        self.home = Path(home)

    def path(self, node: Node, output: str) -> Path:
        """The published folder of one output of `node`."""
        return node.path(self.home, output)

    def read(self, node: Node, output: str | None = None) -> pl.DataFrame:
        """One of the node's tables (its own by default) as a DataFrame."""
        return read_table(self.path(node, output or node.table))

    def work_dir(self, *nodes: Node) -> Path:
        """Private folder for checkpoints, kept between runs."""
        return self.home / ".checkpoints" / nodes[0].label

    def new_staging(self) -> Path:
        """An empty folder for one child; its name tells which process it belongs to."""
        self.clean_staging()
        folder = self.home / ".staging" / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        return folder

    def clean_staging(self) -> None:
        """Remove what processes that are gone left behind."""
        for folder in (self.home / ".staging").glob("*-*"):
            if not Path("/proc", folder.name.split("-")[0]).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, node: Node, staged: dict[str, Path], *, data_version: str, code_version: str, spec_hash: str,
                fields: dict, inputs: dict[str, str], metrics: dict) -> Manifest:
        """Move staged outputs to their places and record them.

        The old manifest goes first and the new one comes last: a process that dies in between
        leaves an asset that counts as missing, never one that looks whole and is not.
        """
        self._manifest_path(node).unlink(missing_ok=True)
        files = {}
        for output, folder in staged.items():
            if not any(folder.iterdir()):
                continue
            final = self.path(node, output)
            swap_in(folder, final)
            for path in sorted(p for p in final.rglob("*") if p.is_file()):
                files[str(path.relative_to(self.home))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = Manifest(data_version, code_version, spec_hash, fields, inputs, metrics, files)
        self._write_manifest(node, manifest)
        return manifest

    def manifest(self, node: Node) -> Manifest | None:
        """The record of a published asset; None where it is missing or a file of it is gone."""
        path = self._manifest_path(node)
        if not path.is_file():
            return None
        manifest = Manifest(**json.loads(path.read_text()))
        return manifest if all((self.home / name).is_file() for name in manifest.files) else None

    def _manifest_path(self, node: Node) -> Path:
        return self.home / ".manifests" / f"{node.label}.json"

    def _write_manifest(self, node: Node, manifest: Manifest) -> None:
        path = self._manifest_path(node)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".writing")
        with open(temporary, "w") as file:
            json.dump(asdict(manifest), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def swap_in(staged: Path, final: Path) -> None:
    """Make `staged` the folder at `final` in one step; what was there is removed afterwards."""
    for path in [*staged.rglob("*"), staged]:
        _fsync(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        os.rename(staged, final)
    elif _exchange(staged, final):
        shutil.rmtree(staged)
    else:
        # No exchange on this file system: a reader may find nothing for an instant, never half.
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(final, old)
        os.rename(staged, final)
        shutil.rmtree(old)
    _fsync(final.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Linux's atomic swap of two names; False where it is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
