"""What Dagster knows of a user's data files: an observation of each, with its content's fingerprint as data version.

A changed file then makes its dataset stale as a changed asset would. Does not decide what is run for it.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, get_input_data_version_tag

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.config.load import Config
from tokenuq_ml.data.sources.fingerprint import fingerprint, signature
from tokenuq_pipeline.runtime.store import Store


def file_key(dataset: str) -> dg.AssetKey:
    """The asset that stands for a dataset's files."""
    return dg.AssetKey(["files", dataset])


def watched(config: Config) -> dict[str, str]:
    """Datasets that are read from the user's own files, with the path of each."""
    return {name: spec.path for name, spec in config.datasets.items() if spec.path is not None}


def current_version(path: str | Path, store: Store) -> str | None:
    """The fingerprint of the files at `path`; None where there are none.

    Read anew only where name, size or time of change differ from those of the last reading.
    """
    memory, key = store.home / ".fingerprints.json", str(Path(path))
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    now = signature(path)
    if not now:
        return None
    if known.get(key, {}).get("signature") == now:
        return known[key]["fingerprint"]
    version = fingerprint(path)
    if signature(path) == now:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(memory, durable=False) as file:
            file.write(json.dumps({**known, key: {"signature": now, "fingerprint": version}}).encode())
    return version


def observed_version(instance: dg.DagsterInstance, dataset: str) -> str | None:
    """The fingerprint in the last observation of a dataset's files."""
    records = instance.fetch_observations(file_key(dataset), limit=1).records
    return (records[0].asset_observation.tags or {}).get(DATA_VERSION_TAG) if records else None


def built_from_version(instance: dg.DagsterInstance, dataset: str) -> str | None:
    """The fingerprint of the files that a dataset was last made from, as it stood when its run began."""
    event = instance.get_latest_materialization_event(dg.AssetKey(["datasets", dataset]))
    tags = (event.asset_materialization.tags or {}) if event else {}
    return tags.get(get_input_data_version_tag(file_key(dataset)))


def observation(dataset: str, path: str, version: str) -> dg.AssetObservation:
    """The event that says what is there now."""
    return dg.AssetObservation(
        file_key(dataset), metadata={"path": dg.MetadataValue.path(path)}, tags={DATA_VERSION_TAG: version}
    )


def observe(config: Config, instance: dg.DagsterInstance, store: Store, datasets: Iterable[str] = ()) -> list[str]:
    """Report an observation of each dataset's files (by default of all) that differ from the last one; names them."""
    changed = []
    for dataset, path in watched(config).items():
        if datasets and dataset not in datasets:
            continue
        version = None
        with contextlib.suppress(OSError):
            version = current_version(path, store)
        if version is not None and version != observed_version(instance, dataset):
            instance.report_runless_asset_event(observation(dataset, path, version))
            changed.append(dataset)
    return changed
