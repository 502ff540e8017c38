"""Versions of the user's data files, as Dagster knows them.

Each dataset with a `path` in datasets.yaml has an asset `files/<dataset>`. Its observations hold the fingerprint of the
files' content as data version, so that a changed file makes its dataset stale as a changed asset would.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.config.load import Config
from tokenuq_ml.data.sources.fingerprint import fingerprint, signature
from tokenuq_pipeline.runtime.dagster_internals import DATA_VERSION_TAG, input_data_version_tag
from tokenuq_pipeline.runtime.store import Store


def file_key(dataset: str) -> dg.AssetKey:
    """Return the key of the asset for a dataset's files."""
    return dg.AssetKey(["files", dataset])


def watched(config: Config) -> dict[str, str]:
    """Return the path of each dataset that is read from the user's own files."""
    return {name: spec.path for name, spec in config.datasets.items() if spec.path is not None}


def current_version(path: str | Path, store: Store) -> str | None:
    """Return the fingerprint of the files at `path`; None if there are none.

    Files are read only if a name, size or modification time has changed since the last fingerprint, which the store
    keeps in `.fingerprints.json`.
    """
    cache, key = store.home / ".fingerprints.json", str(Path(path))
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    now = signature(path)
    if not now:
        return None
    if known.get(key, {}).get("signature") == now:
        return str(known[key]["fingerprint"])
    version = fingerprint(path)
    if signature(path) == now:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Not durable: a lost fingerprint is computed again.
        with atomic_write(cache, durable=False) as file:
            file.write(json.dumps({**known, key: {"signature": now, "fingerprint": version}}).encode())
    return version


def observed_version(instance: dg.DagsterInstance, dataset: str) -> str | None:
    """Return the fingerprint in the last observation of a dataset's files."""
    records = instance.fetch_observations(file_key(dataset), limit=1).records
    observation = records[0].asset_observation if records else None
    return (observation.tags or {}).get(DATA_VERSION_TAG) if observation else None


def built_from_version(instance: dg.DagsterInstance, dataset: str) -> str | None:
    """Return the fingerprint of the files that a dataset was last built from, as observed when its run started."""
    event = instance.get_latest_materialization_event(dg.AssetKey(["datasets", dataset]))
    materialization = event.asset_materialization if event else None
    return (materialization.tags or {}).get(input_data_version_tag(file_key(dataset))) if materialization else None


def observation(dataset: str, path: str, version: str) -> dg.AssetObservation:
    """Return the event that records the current version of a dataset's files."""
    return dg.AssetObservation(
        file_key(dataset), metadata={"path": dg.MetadataValue.path(path)}, tags={DATA_VERSION_TAG: version}
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
    for dataset, path in watched(config).items():
        if names and dataset not in names:
            continue
        version = None
        with contextlib.suppress(OSError):
            version = current_version(path, store)
        if version is not None and version != observed_version(instance, dataset):
            instance.report_runless_asset_event(observation(dataset, path, version))
            changed.append(dataset)
    return changed
