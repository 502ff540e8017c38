"""Versions of the user's data files, as Dagster knows them.

Each dataset with a local `path` in datasets.yaml has an asset `files/<dataset>`, and each reviewed file that datasets
are made by an asset `curation/<name>`. Its observations hold the fingerprint of the content of the files that are read
as data version, so that a changed file makes its dataset stale as a changed asset would.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from tokenuq_ml.config import CuratedDatasetSpec, DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.data.sources.fingerprint import fingerprint, signature
from tokenuq_ml.data.sources.locate import DataFiles, find_files
from tokenuq_ml.data.sources.remote import is_address
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.dagster_internals import DATA_VERSION_TAG, input_data_version_tag
from tokenuq_pipeline.runtime.fingerprints import Fingerprints
from tokenuq_pipeline.runtime.store import Store


def file_key(spec: DatasetSpec) -> dg.AssetKey:
    """Return the key of the asset for a dataset's files: `files/<dataset>`, or `curation/<name>` of a reviewed one."""
    if isinstance(spec, CuratedDatasetSpec):
        return dg.AssetKey(["curation", spec.curated_by])
    return dg.AssetKey(["files", spec.name])


def watched(config: Config) -> dict[str, str]:
    """Return the path of each dataset that is read from the user's own files.

    Files at an address are not watched: to look at them takes a request, and to compare them a download.
    """
    paths = {name: spec.path for name, spec in config.datasets.items() if spec.path is not None}
    return {name: path for name, path in paths.items() if not is_address(path)}


def local_files(spec: DatasetSpec) -> DataFiles | None:
    """Return the files that a watched dataset is read from; None if there are none, or not those that it asks for."""
    try:
        return find_files(spec)
    except InputError:
        return None


def current_version(spec: DatasetSpec, store: Store) -> str | None:
    """Return the fingerprint of the files that a dataset is read from; None if there are none.

    Files are read only if a name, size or modification time has changed since the last fingerprint, which the store
    keeps in `.fingerprints.json`.
    """
    data = local_files(spec)
    if data is None:
        return None
    kept, key = Fingerprints(store.home), f"{spec.name}: {data.root}"
    now = signature(data.root, data.files)
    known = kept.get(key, now)
    if known is not None:
        return known
    version = fingerprint(data.root, data.files)
    if version is not None and signature(data.root, data.files) == now:
        kept.put(key, now, version)
    return version


@dataclass(frozen=True)
class ObservedFiles:
    """The user's own files that a dataset is read from."""

    spec: DatasetSpec

    @property
    def key(self) -> dg.AssetKey:
        """Return the key of the asset that stands for the files."""
        return file_key(self.spec)

    def version(self, store: Store) -> str | None:
        """Return the fingerprint of the content; None if there are no files or they cannot be read."""
        try:
            return current_version(self.spec, store)
        except OSError:
            return None

    def changed_since(self, time: str | None) -> bool:
        """Return whether a file was written, replaced or moved after a time (ISO 8601); True if that is not known."""
        data = local_files(self.spec)
        if data is None or time is None:
            return True
        try:
            limit = datetime.fromisoformat(time).timestamp() + 1.0
        except ValueError:
            return True
        stats = [file.stat() for file in data.files]
        # The time of change too: a file that is moved or unpacked here keeps its old time of modification.
        return any(max(stat.st_mtime, stat.st_ctime) > limit for stat in stats)


def observed_version(instance: dg.DagsterInstance, spec: DatasetSpec) -> str | None:
    """Return the fingerprint in the last observation of a dataset's files."""
    records = instance.fetch_observations(file_key(spec), limit=1).records
    observation = records[0].asset_observation if records else None
    return (observation.tags or {}).get(DATA_VERSION_TAG) if observation else None


def built_from_version(instance: dg.DagsterInstance, spec: DatasetSpec) -> str | None:
    """Return the fingerprint of the files that a dataset was last built from, as observed when its run started."""
    event = instance.get_latest_materialization_event(dg.AssetKey(["datasets", spec.name]))
    materialization = event.asset_materialization if event else None
    return (materialization.tags or {}).get(input_data_version_tag(file_key(spec))) if materialization else None


def observation(spec: DatasetSpec, version: str) -> dg.AssetObservation:
    """Return the event that records the current version of a dataset's files."""
    return dg.AssetObservation(
        file_key(spec), metadata={"path": dg.MetadataValue.path(str(spec.path))}, tags={DATA_VERSION_TAG: version}
    )


def observe(config: Config, instance: dg.DagsterInstance, store: Store, datasets: Iterable[str] = ()) -> list[str]:
    """Report an observation for each dataset whose files have changed since the last one.

    Args:
        config: the datasets.
        instance: where observations are reported.
        store: where fingerprints are cached.
        datasets: names to look at; by default all.

    Returns:
        The datasets whose files have changed.
    """
    changed = []
    names = set(datasets)
    for dataset in watched(config):
        if names and dataset not in names:
            continue
        version, spec = None, config.datasets[dataset]
        with contextlib.suppress(OSError):
            version = current_version(spec, store)
        if version is not None and version != observed_version(instance, spec):
            instance.report_runless_asset_event(observation(spec, version))
            changed.append(dataset)
    return changed
