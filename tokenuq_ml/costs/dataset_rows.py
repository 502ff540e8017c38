"""How many rows a split will have, before the dataset is read: as counted in `sizes`, or estimated."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.split_sizes import apportion, are_counts, exact
from tokenuq_ml.data import load
from tokenuq_ml.data.sources import locate, remote
from tokenuq_ml.data.sources.fingerprint import COMPRESSIONS
from tokenuq_ml.errors import InputError

ASSUMED_ROWS = 10_000
"""Rows of a source that cannot be read yet."""
COMPRESSION = 4
"""Bytes of text per compressed byte."""
FIRST_ROWS = 200
"""Rows whose bytes are counted."""


def splits_of(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the splits that are planned: of the entry, else of its folder; `train` if only the rows name them."""
    if spec.splits is not None:
        return spec.splits
    data = _local_files(spec)
    return tuple(data.drawn_from) if data and data.drawn_from else ("train",)


def scored_splits(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the splits of a dataset of `ood` that are scored: its split `ood` alone, if it has one."""
    splits = splits_of(spec)
    return ("ood",) if "ood" in splits else splits


def expected_rows(spec: DatasetSpec, split: str, datasets: Mapping[str, DatasetSpec]) -> tuple[int, str]:
    """Return the rows of a split, and how they are known; empty text if `sizes` counts them.

    Args:
        spec: the dataset.
        split: one of its splits.
        datasets: the entries of a mix, and of the mixes that it names.
    """
    if are_counts(spec.sizes):
        assert spec.sizes != "all"
        return int(spec.sizes[split]), ""
    if spec.sizes == "all" and split not in splits_of(spec) and not spec.mix:
        return 0, "rows not known before the dataset is read (`sizes: all`)"
    share = exact(1.0 if spec.sizes == "all" else spec.sizes[split])
    total, origin = _most_of_mix(spec, split, datasets) if spec.mix else _source_rows(spec, split)
    return int(total * share), origin


def rows_of_mix(spec: DatasetSpec, split: str, datasets: Mapping[str, DatasetSpec]) -> dict[str, int]:
    """Return the rows that each dataset of a mix gives to a split."""
    return apportion(expected_rows(spec, split, datasets)[0], _shares(spec, split, datasets))


def _shares(spec: DatasetSpec, split: str, datasets: Mapping[str, DatasetSpec]) -> dict:
    assert spec.mix is not None
    weights = {name: exact(spec.mix[name]) for name in sorted(spec.mix) if split in splits_of(datasets[name])}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _most_of_mix(spec: DatasetSpec, split: str, datasets: Mapping[str, DatasetSpec]) -> tuple[int, str]:
    shares = _shares(spec, split, datasets)
    rows = {name: expected_rows(datasets[name], split, datasets)[0] for name in shares}
    return min((int(rows[name] / share) for name, share in shares.items()), default=0), "rows as the weights allow"


def _source_rows(spec: DatasetSpec, split: str) -> tuple[int, str]:
    """Estimate the rows, or conversations of `turns_joined`, that a split is drawn from by the size of local files."""
    unknown = ASSUMED_ROWS, f"{ASSUMED_ROWS:,} rows assumed, since the source is not here yet"
    data = _local_files(spec)
    if data is None:
        return unknown
    files = data.parts[(data.drawn_from or {}).get(split, "")]
    try:
        sample = load.first_conversations(spec, split, FIRST_ROWS)
        if all(file.suffix.lower() == ".parquet" for file in files):
            rows = sum(pq.read_metadata(file).num_rows for file in files)
            return rows // spec.turns_joined, "rows counted in its Parquet files"
    except (InputError, OSError):
        return unknown
    if not sample:
        return unknown
    row = mean(len(json.dumps(turns, ensure_ascii=False).encode()) for turns in sample)
    return round(sum(map(_bytes, files)) / row), f"rows estimated from the size of its files ({row:,.0f} bytes per row)"


def _local_files(spec: DatasetSpec) -> locate.DataFiles | None:
    """Return the files of a dataset; None if it has none here."""
    if spec.mix or spec.on_hub or (spec.path is not None and remote.is_address(spec.path)):
        return None
    try:
        return locate.find_files(spec)
    except (InputError, OSError):
        return None


def _bytes(file: Path) -> int:
    return file.stat().st_size * (COMPRESSION if file.suffix.lower() in COMPRESSIONS else 1)
