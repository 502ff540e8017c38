"""The family table: the seeds of an ablation as one row, with spread and difference to a baseline for each metric.

Plain rows for the page, the terminal, JSON and CSV, and a sentence about them. `evaluation/paired.py` computes the
statistics; `result_tables.py` and `text.py` render the rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, AblationSpec, EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import LM_EVAL, may_lack_examples
from tokenuq_ml.evaluation.paired import Estimate, Family, PairedBootstrap

BASELINE = "mle"
NAMES_IN_VERDICT = 3
Metric = tuple[str, str, str]
"""Dataset, split and metric."""
Parts = tuple[np.ndarray, np.ndarray]
"""Numerators and denominators of a model's examples, `[n]`."""


def families_of(ablations: Mapping[str, AblationSpec]) -> dict[str, list[str]]:
    """Return family -> its ablations, both in the study's order."""
    families: dict[str, list[str]] = {}
    for name, ablation in ablations.items():
        families.setdefault(ablation.family, []).append(name)
    return families


def baseline_of(families: Sequence[str]) -> str:
    """Return the family that others are compared with: `mle`, or the first family of a study without it."""
    return BASELINE if BASELINE in families else families[0]


class Comparison(NamedTuple):
    """The families that have a metric, and the bootstrap that compares them."""

    metric: Metric
    higher_is_better: bool | None
    members: Mapping[str, list[str]]
    """Family -> its models, one per seed."""
    bootstrap: PairedBootstrap
    n: int
    """Examples."""


def comparisons(
    table: Sequence[dict],
    examples: Mapping[str, pl.DataFrame],
    ablations: Mapping[str, AblationSpec],
    evaluation: EvaluationSpec,
) -> Iterator[Comparison]:
    """Yield one comparison per metric, in the order of `table`; the arguments are those of `family_rows`."""
    families = {name: [name] for name in REFERENCE_ROWS if name in examples} | families_of(ablations)
    metrics = {(row["dataset"], row["split"], row["metric"]): row["higher_is_better"] for row in table}
    of_metrics = _by_metric(examples) if metrics else {}
    for metric, higher_is_better in metrics.items():
        parts = _parts(metric, of_metrics.get(metric, {}))
        members = {family: names for family, names in families.items() if all(name in parts for name in names)}
        if not members:
            continue
        bootstrap = PairedBootstrap(
            {family: paired_family(names, parts, ablations) for family, names in members.items()},
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=evaluation.seed,
        )
        first = next(iter(members.values()))[0]
        yield Comparison(metric, higher_is_better, members, bootstrap, len(parts[first][0]))


def family_rows(
    table: Sequence[dict],
    examples: Mapping[str, pl.DataFrame],
    ablations: Mapping[str, AblationSpec],
    evaluation: EvaluationSpec,
) -> list[dict]:
    """Return one row per metric and family: metrics in the order of `table`, base and teacher before the families.

    Args:
        table: rows of `ablation_table.table_rows`, which give the metrics, their order and direction.
        examples: model -> its `evaluation_examples`, including base and teacher.
        ablations: the study's ablations, in its order, each family at one setting.
        evaluation: resamples, confidence and seed of the intervals.

    Returns:
        As `rows_of`.

    Raises:
        InputError: models were evaluated on different examples.
    """
    return rows_of(comparisons(table, examples, ablations, evaluation), ablations)


def rows_of(compared: Iterable[Comparison], ablations: Mapping[str, AblationSpec]) -> list[dict]:
    """Return one row per comparison and family.

    Args:
        compared: of each metric.
        ablations: the study's ablations, in its order, each family at one setting.

    Returns:
        For each family: `value` (mean over seeds), `spread` (standard deviation over seeds, None for one seed), its
        interval over examples and seeds, and `difference` to `against` with its interval. `verdict` is `better` or
        `worse` (`higher` or `lower` for a metric without direction), or `not distinguishable` if that interval
        contains 0 or only one example was evaluated; None for the baseline itself. `setting` is what the family was
        trained with if that differs from the study's budget. A family has no row for a metric that one of its seeds
        lacks.
    """
    against = baseline_of(list(families_of(ablations)))
    rows = []
    for metric, higher_is_better, members, bootstrap, n in compared:
        for family, names in members.items():
            is_compared = against in members and family != against
            difference = bootstrap.difference(family, against) if is_compared else None
            rows.append(
                {
                    "family": family,
                    "selection": ablations[names[0]].selection_kind if names[0] in ablations else None,
                    "setting": _setting(ablations.get(names[0])),
                    "models": " ".join(names),
                    "n_seeds": len(names),
                    **dict(zip(("dataset", "split", "metric"), metric, strict=True)),
                    **_mean_fields(bootstrap, family),
                    "n": n,
                    "higher_is_better": higher_is_better,
                    "against": against,
                    **_difference_fields(difference, n, higher_is_better),
                }
            )
    return rows


def _setting(ablation: AblationSpec | None) -> str | None:
    return ablation.train.text if ablation is not None and ablation.train.values else None


def paired_family(names: Sequence[str], parts: Mapping[str, Parts], ablations: Mapping[str, AblationSpec]) -> Family:
    """Return the models of a family, as the bootstrap takes them.

    Args:
        names: of its ablations, one per seed.
        parts: of every model, from `metric_parts`.
        ablations: by name; base and teacher are not among them.
    """
    return Family(
        tuple(ablations[name].seed if name in ablations else None for name in names),
        np.stack([parts[name][0] for name in names]),
        np.stack([parts[name][1] for name in names]),
    )


def _mean_fields(bootstrap: PairedBootstrap, family: str) -> dict[str, float | None]:
    mean = bootstrap.mean(family)
    return {
        "value": mean.value,
        "spread": bootstrap.spread(family),
        "ci_low": mean.low,
        "ci_high": mean.high,
    }


def _difference_fields(difference: Estimate | None, n: int, higher_is_better: bool | None) -> dict:
    return {
        "difference": difference.value if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "verdict": _compare(difference, n, higher_is_better) if difference else None,
    }


def metric_parts(metric: Metric, examples: Mapping[str, pl.DataFrame]) -> dict[str, Parts]:
    """Return model -> numerators and denominators, in the order of example ids, which are the same for all models.

    Args:
        metric: dataset, split and metric.
        examples: model -> its `evaluation_examples`.

    Raises:
        InputError: models were evaluated on different examples.
    """
    dataset, split, name = metric
    of_metric = {
        model: frame.filter(dataset=dataset, split=split, metric=name).sort("example_id")
        for model, frame in examples.items()
    }
    return _parts(metric, of_metric)


def _by_metric(examples: Mapping[str, pl.DataFrame]) -> dict[Metric, dict[str, pl.DataFrame]]:
    """Return metric -> model -> its rows, by example. Reads each table once: 400 models have thousands of metrics."""
    found: dict[Metric, dict[str, pl.DataFrame]] = {}
    for model, frame in examples.items():
        partitions = frame.sort("example_id").partition_by("dataset", "split", "metric", as_dict=True)
        for key, rows in partitions.items():
            dataset, split, name = map(str, key)
            found.setdefault((dataset, split, name), {})[model] = rows
    return found


def _parts(metric: Metric, examples: Mapping[str, pl.DataFrame]) -> dict[str, Parts]:
    """Do what `metric_parts` says, with the rows of one metric by example."""
    dataset, _, name = metric
    parts, ids, first = {}, None, None
    of_metric = {model: rows for model, rows in examples.items() if len(rows)}
    if may_lack_examples(dataset, name) and of_metric:
        # Models are compared on the examples that all of them have.
        common = set.intersection(*(set(own["example_id"]) for own in of_metric.values()))
        if not common and dataset.startswith(LM_EVAL):
            raise InputError(
                f"{dataset} {name}: {' and '.join(list(of_metric)[:2])} were evaluated on other samples, since the "
                "task's data have changed; materialise the evaluation of all models again"
            )
        of_metric = {
            model: own.filter(pl.col("example_id").is_in(common)) for model, own in of_metric.items() if common
        }
    for model, own in of_metric.items():
        if ids is None:
            ids, first = own["example_id"], model
        elif not ids.equals(own["example_id"]):
            raise InputError(
                f"{dataset} {name}: {model} and {first} were evaluated on different examples; materialise the "
                "evaluation of both again"
            )
        parts[model] = own["numerator"].to_numpy(), own["denominator"].to_numpy()
    return parts


def _compare(difference: Estimate, n: int, higher_is_better: bool | None) -> str:
    if n < 2 or difference.low <= 0 <= difference.high:
        return "not distinguishable"
    if higher_is_better is None:
        return "higher" if difference.value > 0 else "lower"
    return "better" if (difference.value > 0) is higher_is_better else "worse"


def verdict(rows: Sequence[dict]) -> str:
    """Return a sentence that says which families differ from the baseline on which metrics."""
    students = [row for row in rows if row["selection"] is not None and row["verdict"] is not None]
    if not students:
        return "There is only one family of students, and nothing to compare it with."
    against = students[0]["against"]
    distinguishable = []
    for dataset, name in dict.fromkeys((row["dataset"], row["metric"]) for row in students):
        of_metric = [row for row in students if (row["dataset"], row["metric"]) == (dataset, name)]
        rows_of_metric = sorted(of_metric, key=lambda row: -abs(row["difference"]))
        groups = [
            f"{which} {_names([row['family'] for row in rows_of_metric if row['verdict'] == which])}"
            for which in ("better", "worse", "higher", "lower")
            if any(row["verdict"] == which for row in rows_of_metric)
        ]
        if groups:
            distinguishable.append(f"{dataset} {name} ({'; '.join(groups)})")
    if distinguishable:
        return (
            f"Distinguishable from {against} on: {', '.join(distinguishable)}. "
            "All other differences are not distinguishable."
        )
    return (
        f"No family is distinguishable from {against} on any metric: this study demonstrates the pipeline, but cannot "
        "separate the ablations. More examples or more seeds narrow the intervals."
    )


def _names(families: Sequence[str]) -> str:
    more = len(families) - NAMES_IN_VERDICT
    return ", ".join(families[:NAMES_IN_VERDICT]) + (f" and {more} more" if more > 0 else "")
