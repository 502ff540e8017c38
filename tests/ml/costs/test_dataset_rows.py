"""How many rows a plan expects of shares, of all rows, and of mixes."""

import json

import polars as pl
import pytest

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.costs.dataset_rows import ASSUMED_ROWS, expected_rows, rows_of_mix, splits_of
from tokenuq_ml.costs.lengths import Lengths, lengths
from tokenuq_ml.costs.sources import dataset_source

ROW = {"instruction": "i" * 40, "input": "", "output": "o" * 80}


def alpaca(path, **keys) -> DatasetSpec:
    return DatasetSpec(**{"name": "d", "format": "alpaca", "path": str(path), "sizes": "all", **keys})


def test_rows_are_estimated_by_bytes_or_counted_in_parquet(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW] * 300))
    rows, origin = expected_rows(alpaca(tmp_path / "a.json"), "train", {})
    assert rows == pytest.approx(300, rel=0.4) and "estimated from the size" in origin
    pl.DataFrame([ROW] * 300).write_parquet(tmp_path / "a.parquet")
    spec = alpaca(tmp_path / "a.parquet", sizes={"train": 0.9, "test": 0.1})
    assert expected_rows(spec, "test", {}) == (30, "rows counted in its Parquet files")
    found = lengths(spec, "test", 1000, {})
    assert found.rows == 30 and found.origin.startswith("rows counted in its Parquet files; estimated")


def test_rows_that_cannot_be_known_are_assumed():
    assert expected_rows(alpaca("/nowhere"), "train", {})[0] == ASSUMED_ROWS
    hub = DatasetSpec(name="d", format="alpaca", id="o/d", sizes={"train": 0.5})
    rows, origin = expected_rows(hub, "train", {})
    assert rows == ASSUMED_ROWS / 2 and "assumed" in origin
    assert expected_rows(alpaca("/nowhere"), "test", {}) == (
        0,
        "rows not known before the dataset is read (`sizes: all`)",
    )
    assert splits_of(alpaca("/nowhere")) == ("train",)


def test_measured_rows_replace_estimates():
    measured = {("d", "train"): Lengths(77, 9, 5, 81, "measured")}
    assert lengths(alpaca("/nowhere"), "train", 100, measured).rows == 77
    assert lengths(alpaca("/nowhere", sizes={"train": 5}), "train", 100, measured).rows == 5


def test_a_mix_has_the_lengths_of_its_datasets_by_weight():
    datasets = {
        "a": DatasetSpec(name="a", format="alpaca", id="o/a", sizes={"train": 30, "test": 3}),
        "b": DatasetSpec(name="b", format="raw_text", id="o/b", sizes={"train": 10}),
    }
    mix = DatasetSpec(name="m", format="mix", mix={"a": 3, "b": 1}, sizes={"train": 20})
    assert rows_of_mix(mix, "train", datasets) == {"a": 15, "b": 5}
    found = lengths(mix, "train", 1000, {}, datasets)
    assert (found.rows, found.tokens, found.response) == (20, (15 * 120 + 5 * 500) / 20, (15 * 60 + 5 * 500) / 20)
    every = mix.model_copy(update={"sizes": "all"})
    assert expected_rows(every, "train", datasets)[0] == 40 and rows_of_mix(every, "test", datasets) == {"a": 3}
    source = dataset_source(mix, complete=False)
    assert source.ready and source.words == "a mix of a, b"
