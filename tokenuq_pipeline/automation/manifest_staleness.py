"""Why an asset is stale, by the store's manifests alone: its files, its code version, and everything that it read.

The manifests decide what is fresh, and Dagster's records follow them (`adoption.py`). So a store that is used with a
new `DAGSTER_HOME`, or was made when other edges were drawn, is used as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.automation.explain import NEW_CODE
from tokenuq_pipeline.runtime.data_files import ObservedFiles
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store

NO_MANIFEST = "has no manifest"
"""The words of `Store.incomplete_because`."""


@dataclass(frozen=True)
class ManifestReader:
    """Reads each manifest of a store once: what one look at the store sees."""

    store: Store
    _known: dict[str, Manifest | None] = field(default_factory=dict)

    def manifest(self, asset: str) -> Manifest | None:
        """Return the manifest of an asset; None if there is none, or it is damaged."""
        if asset not in self._known:
            self._known[asset] = self.store.read_manifest(asset)
        return self._known[asset]

    def why_stale(self, asset: StageAsset) -> str | None:
        """Return why an asset is missing or stale; None if it is complete and up to date with everything that it read.

        An input without a manifest says nothing: it is stale itself, and may be made again with the same content.
        """
        manifest = self.manifest(asset.name)
        incomplete = self.store.incomplete_because(asset.name)
        if manifest is None or incomplete is not None:
            return f"is incomplete in the store: {incomplete or NO_MANIFEST}"
        return "; ".join(self._changes(asset, manifest)) or None

    def _changes(self, asset: StageAsset, manifest: Manifest) -> Iterator[str]:
        if manifest.code_version != asset.code_version:
            yield NEW_CODE
        recorded = manifest.input_data_versions
        optional = {"/".join(path) for path in asset.optional_reads}
        for name in sorted("/".join(path) for path in asset.reads):
            now = self.manifest(name)
            if name not in recorded and name in optional:
                if now is not None:
                    yield f"{name} was made"
            elif name not in recorded:
                yield f"has a new dependency on {name}"
            elif now is not None and now.data_version != recorded[name]:
                yield f"{name} has changed"
        for files in asset.observed_files:
            if (reason := self._file_change(files, manifest)) is not None:
                yield reason

    def _file_change(self, files: ObservedFiles, manifest: Manifest) -> str | None:
        """Return how the user's files differ from those that were read. Files that are gone differ from nothing."""
        now, name = files.version(self.store), files.key.to_user_string()
        if now is None:
            return None
        recorded = manifest.input_data_versions.get(name)
        if recorded is not None:
            return None if recorded == now else f"{name} has changed"
        # Manifests of earlier versions record no fingerprint.
        changed = files.changed_since(manifest.provenance.made_at)
        return f"{name} has changed since, or no record says that it has not" if changed else None
