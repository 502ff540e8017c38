"""What a model card says of a model's evaluations: each metric with its interval, and its difference from the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tokenuq_ml.config import BASE_ROW, EvaluationSpec
from tokenuq_ml.evaluation.metrics import IS_OF_SLOT, KEYS, NO_DIRECTION
from tokenuq_ml.evaluation.paired import Estimate, Family, PairedBootstrap
from tokenuq_ml.tables.parquet import read_table


@dataclass(frozen=True)
class Figure:
    """One metric of the exported model."""

    dataset: str
    split: str
    metric: str
    own: Estimate
    n: int
    higher_is_better: bool
    base: float | None = None
    difference: Estimate | None = None
    """Own value minus the base model's, paired over examples; None if the base model was not evaluated alike."""


def figures(tables: Mapping[str, str], row: str, evaluation: EvaluationSpec) -> list[Figure]:
    """Return the metrics of a model that have a direction, in the order of their table.

    Args:
        tables: `<table>/<row>` -> folder; those that were not made are missing.
        row: of the model.
        evaluation: resamples, confidence and seed of the intervals.
    """
    if f"evaluations/{row}" not in tables:
        return []
    rows = read_table(tables[f"evaluations/{row}"]).filter(
        ~pl.col("metric").is_in(NO_DIRECTION) & ~IS_OF_SLOT & pl.col("higher_is_better").is_not_null()
    )
    parts = {name: _parts(tables, name) for name in (row, BASE_ROW)}
    found = []
    for one in rows.sort("split", "dataset", "metric", descending=[True, False, False]).iter_rows(named=True):
        key = tuple(one[name] for name in KEYS)
        own, base = parts[row].get(key), parts[BASE_ROW].get(key)
        bootstrap = None
        if own is not None and base is not None and own["example_id"].equals(base["example_id"]):
            bootstrap = PairedBootstrap(
                {"own": _family(own), "base": _family(base)},
                resamples=evaluation.bootstrap,
                confidence=evaluation.confidence,
                seed=evaluation.seed,
            )
        found.append(
            Figure(
                dataset=one["dataset"],
                split=one["split"],
                metric=one["metric"],
                own=Estimate(one["value"], one["ci_low"], one["ci_high"]),
                n=one["n"],
                higher_is_better=one["higher_is_better"],
                base=None if bootstrap is None else bootstrap.mean("base").value,
                difference=None if bootstrap is None else bootstrap.difference("own", "base"),
            )
        )
    return found


def as_table(found: Sequence[Figure], confidence: float) -> str:
    """Return the figures as a Markdown table."""
    level = f"{confidence:.0%}"
    lines = [
        f"| metric | data | examples | this model ({level} interval) | base model | difference ({level} interval) |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        arrow = "higher is better" if one.higher_is_better else "lower is better"
        base = "not evaluated" if one.base is None else f"{one.base:.4g}"
        gap = "" if one.difference is None else _interval(one.difference, signed=True)
        where = f"{one.dataset}, {'out of distribution' if one.split == 'ood' else one.split}"
        lines.append(f"| {one.metric} ({arrow}) | {where} | {one.n} | {_interval(one.own)} | {base} | {gap} |")
    return "\n".join(lines)


def _interval(estimate: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (f"{number:{sign}.4g}" for number in estimate)
    return f"{value} [{low}, {high}]"


def _parts(tables: Mapping[str, str], row: str) -> dict[tuple, pl.DataFrame]:
    """Return the examples of each metric of a model, in the order of their ids."""
    path = tables.get(f"evaluation_examples/{row}")
    if path is None or not Path(path).is_dir():
        return {}
    table = read_table(path).with_columns(pl.col(*KEYS, "example_id").cast(pl.String))
    return {key: group for key, group in table.sort(*KEYS, "example_id").partition_by(*KEYS, as_dict=True).items()}


def _family(examples: pl.DataFrame) -> Family:
    above, below = (examples[name].to_numpy()[None] for name in ("numerator", "denominator"))
    return Family((None,), above, below)
