"""Manifests that are written and edited as a test wants them, with the digest of what they hold then."""

import hashlib
import json
from pathlib import Path

from tokenuq_ml.tables.partitions import DIGEST, digest_of
from tokenuq_pipeline.runtime.manifest import FileEntry, Manifest
from tokenuq_pipeline.runtime.places import manifest_place
from tokenuq_pipeline.runtime.store import Store


def complete(store: Store, manifest: Manifest) -> Manifest:
    """Mark an asset, whose folders are in place, as complete; return the manifest with its files."""
    paths = (
        path for place in manifest.outputs.values() for path in sorted(store.path(place).rglob("*")) if path.is_file()
    )
    files = [
        FileEntry(
            path=path.relative_to(store.home).as_posix(),
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in paths
    ]
    found = manifest.model_copy(update={"files": files})
    found.write(store.home / manifest_place(manifest.asset))
    return found


def edit(path: Path, **fields) -> None:
    """Replace fields of a manifest."""
    write(path, json.loads(path.read_text()) | fields)


def write(path: Path, content: dict) -> None:
    """Write a manifest with this content, and its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {DIGEST: digest_of(content)}))
