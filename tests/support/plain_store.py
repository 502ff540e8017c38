"""Assets without content of their own: every folder that an asset of a name can have, with one small file in each."""

import os

from tests.support.manifests import complete
from tests.support.tiny_store import manifest
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of


def put(store: Store, asset: str, content: str = "x", **parts) -> Manifest:
    """Write the asset's files and its manifest."""
    outputs = places_of(asset)
    for place in outputs.values():
        folder = store.path(place)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text(content)
    return complete(store, manifest(asset, data_version=content, outputs=outputs, **parts))


def tree(folder) -> dict[str, str | None]:
    """Return every path below a folder with its content; None for a folder, which counts only if it is empty."""
    found = {}
    for root, folders, files in os.walk(folder):
        relative = os.path.relpath(root, folder)
        if not folders and not files:
            found[relative] = None
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(root, name)))]:
            path = os.path.join(root, name)
            found[os.path.join(relative, name).removeprefix("./")] = (
                f"-> {os.readlink(path)}" if os.path.islink(path) else open(path, errors="replace").read()
            )
    return found
