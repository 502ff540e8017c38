"""What the manifests record of the inputs of a child process, which compares it before it reads them."""

from collections.abc import Iterable
from fnmatch import fnmatch

from tokenuq_ml.stages.request import RecordedFile, RecordedInput, RecordedOrigin
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store


def recorded_inputs(store: Store, assets: Iterable[StageAsset]) -> dict[str, RecordedInput]:
    """Return input name -> its files by their manifest, for the inputs that these assets do not make themselves."""
    assets = list(assets)
    made = {path for asset in assets for path in asset.outputs.values()}
    manifests: dict[str, Manifest | None] = {}
    recorded = {}
    for item in (item for asset in assets for item in asset.inputs if item.path not in made):
        name = "/".join(item.asset)
        if name not in manifests:
            manifests[name] = store.read_manifest(name)
        if (manifest := manifests[name]) is not None:
            origin = _origin(manifest) if item.described else None
            recorded[item.name] = RecordedInput(asset=name, files=_files(manifest, item), origin=origin)
    return recorded


def _files(manifest: Manifest, item: Input) -> dict[str, RecordedFile]:
    prefix = f"{item.path}/"
    found = {file.path.removeprefix(prefix): file for file in manifest.files if file.path.startswith(prefix)}
    return {
        path: RecordedFile(bytes=file.bytes, sha256=None if _is_unread(path, item) else file.sha256)
        for path, file in found.items()
    }


def _origin(manifest: Manifest) -> RecordedOrigin:
    return RecordedOrigin(
        data_version=manifest.data_version,
        code_version=manifest.code_version,
        metrics=manifest.metrics,
        provenance=manifest.provenance.model_dump(mode="json", exclude_none=True),
    )


def _is_unread(path: str, item: Input) -> bool:
    return any(fnmatch(path, pattern) for pattern in item.not_read)
