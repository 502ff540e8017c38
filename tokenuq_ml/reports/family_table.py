"""The family table: seeds of an ablation as one row, each metric with its spread and its difference to a baseline.

Plain rows for the page, the terminal, JSON and CSV, and what they say in words. The statistics are
`evaluation/paired.py`'s; how a table looks is `html.py`'s and `text.py`'s.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, AblationSpec, EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import JUDGED
from tokenuq_ml.evaluation.paired import Family, PairedBootstrap

BASELINE = "mle"
NAMES_IN_VERDICT = 3
Metric = tuple[str, str, str]


def families_of(ablations: Mapping[str, AblationSpec]) -> dict[str, list[str]]:
    """Family -> its ablations, both in the study's order."""
    families: dict[str, list[str]] = {}
    for name, ablation in ablations.items():
        families.setdefault(ablation.family, []).append(name)
    return families


def baseline_of(families: Sequence[str]) -> str:
    """What the others are compared with: `mle`, or the first family of a study without it."""
    return BASELINE if BASELINE in families else families[0]


def family_rows(
    table: Sequence[dict],
    examples: Mapping[str, pl.DataFrame],
    ablations: Mapping[str, AblationSpec],
    evaluation: EvaluationSpec,
) -> list[dict]:
    """Rows by metric in the order of `table`, then family in the study's order, base and teacher on top.

    Args:
        table: rows of `ablation_table.table_rows`, for metrics, their order and direction.
        examples: model -> its `evaluation_examples`, references among them.
        ablations: the study's, in its order.
        evaluation: resamples, confidence and seed of the intervals.

    Returns:
        Of each family: `value` (mean over seeds), `spread` (standard deviation over seeds, None for one), its
        interval over examples and seeds, and `difference` to `against` with its interval. `verdict` is
        `better`, `worse` (of a metric without direction `higher`, `lower`), or `not distinguishable` where that
        interval holds 0 (or only one example was evaluated, whose interval has no width); None for the baseline
        itself. A family is left out of a metric that one of its seeds lacks.

    Raises:
        InputError: models were evaluated on different examples.
    """
    families = {name: [name] for name in REFERENCE_ROWS if name in examples} | families_of(ablations)
    against = baseline_of(list(families_of(ablations)))
    rows = []
    metrics = {(row["dataset"], row["split"], row["metric"]): row["higher_is_better"] for row in table}
    for metric, higher_is_better in metrics.items():
        parts = _parts(metric, examples)
        present = {family: names for family, names in families.items() if all(name in parts for name in names)}
        if not present:
            continue
        study = PairedBootstrap(
            {
                family: Family(
                    tuple(ablations[name].seed if name in ablations else None for name in names),
                    np.stack([parts[name][0] for name in names]),
                    np.stack([parts[name][1] for name in names]),
                )
                for family, names in present.items()
            },
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=evaluation.seed,
        )
        for family, names in present.items():
            mean, n = study.mean(family), len(parts[names[0]][0])
            compared = against in present and family != against
            difference = study.difference(family, against) if compared else None
            rows.append(
                {
                    "family": family,
                    "selection": ablations[names[0]].selection_kind if names[0] in ablations else None,
                    "models": " ".join(names),
                    "n_seeds": len(names),
                    "dataset": metric[0],
                    "split": metric[1],
                    "metric": metric[2],
                    "value": mean.value,
                    "spread": study.spread(family),
                    "ci_low": mean.low,
                    "ci_high": mean.high,
                    "n": n,
                    "higher_is_better": higher_is_better,
                    "against": against,
                    "difference": difference.value if difference else None,
                    "difference_low": difference.low if difference else None,
                    "difference_high": difference.high if difference else None,
                    "verdict": _compare(difference, n, higher_is_better) if difference else None,
                }
            )
    return rows


def _parts(metric: Metric, examples: Mapping[str, pl.DataFrame]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Model -> numerators and denominators, in the order of the examples' ids, which are the same for all."""
    dataset, split, name = metric
    parts, ids, first = {}, None, None
    of_metric = {
        model: frame.filter(dataset=dataset, split=split, metric=name).sort("example_id")
        for model, frame in examples.items()
    }
    of_metric = {model: own for model, own in of_metric.items() if len(own)}
    if name in JUDGED and of_metric:
        # A judge may say nothing of some outputs: what all models have in common is compared.
        common = set.intersection(*(set(own["example_id"]) for own in of_metric.values()))
        of_metric = {
            model: own.filter(pl.col("example_id").is_in(common)) for model, own in of_metric.items() if common
        }
    for model, own in of_metric.items():
        if ids is None:
            ids, first = own["example_id"], model
        elif not ids.equals(own["example_id"]):
            raise InputError(
                f"{dataset} {name}: {model} was evaluated on other examples than {first}; materialise the "
                "evaluation of both again"
            )
        parts[model] = own["numerator"].to_numpy(), own["denominator"].to_numpy()
    return parts


def _compare(difference, n: int, higher_is_better: bool | None) -> str:
    if n < 2 or difference.low <= 0 <= difference.high:
        return "not distinguishable"
    if higher_is_better is None:
        return "higher" if difference.value > 0 else "lower"
    return "better" if (difference.value > 0) is higher_is_better else "worse"


def verdict(rows: Sequence[dict]) -> str:
    """What the families' differences to the baseline can and cannot say, in words."""
    students = [row for row in rows if row["selection"] is not None and row["verdict"] is not None]
    if not students:
        return "There is one family of students only: nothing to compare it with."
    against = students[0]["against"]
    telling = []
    for dataset, name in dict.fromkeys((row["dataset"], row["metric"]) for row in students):
        of_metric = [row for row in students if (row["dataset"], row["metric"]) == (dataset, name)]
        told = sorted(of_metric, key=lambda row: -abs(row["difference"]))
        said = [
            f"{which} {_names([row['family'] for row in told if row['verdict'] == which])}"
            for which in ("better", "worse", "higher", "lower")
            if any(row["verdict"] == which for row in told)
        ]
        if said:
            telling.append(f"{dataset} {name} ({'; '.join(said)})")
    if telling:
        return (
            f"Distinguishable from {against} on: {', '.join(telling)}. Everything else is not distinguishable from it."
        )
    return (
        f"On no metric can any family be told from {against}: this study demonstrates the pipeline and cannot separate "
        "the arms. More examples or more seeds narrow the intervals."
    )


def _names(families: Sequence[str]) -> str:
    more = len(families) - NAMES_IN_VERDICT
    return ", ".join(families[:NAMES_IN_VERDICT]) + (f" and {more} more" if more > 0 else "")
