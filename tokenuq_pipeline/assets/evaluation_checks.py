"""Asset checks of evaluations. They only warn: a bad result is a result."""

from typing import TYPE_CHECKING

from tokenuq_ml.config import BASE_ROW, TEACHER_ROW
from tokenuq_pipeline.assets.check_outcome import Outcome, outcome, read
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path

if TYPE_CHECKING:
    import polars as pl


def quality_in_distribution(store: Store, study: str, ablation: str) -> Outcome:
    """Check that the student's loss on the test split is not above the base model's."""
    import polars as pl

    both = _compare(store, study, ablation, BASE_ROW, "test")
    if not len(both):
        return _nothing_to_compare(study)
    return outcome(
        not len(both.filter(pl.col("value") > pl.col("value_other"))),
        "; ".join(
            f"{dataset}: {student:.3f} nats per token, the base model {base:.3f}"
            for dataset, student, base in both.select("dataset", "value", "value_other").iter_rows()
        ),
        warn=True,
    )


def ood_kept(store: Store, study: str, ablation: str) -> Outcome:
    """Check that the student's loss out of distribution is not above the teacher's interval."""
    import polars as pl

    if not len(_loss(store, study, ablation, "ood")):
        return outcome(True, "the study has no ood data", warn=True)
    both = _compare(store, study, ablation, TEACHER_ROW, "ood")
    if not len(both):
        return _nothing_to_compare(study)
    return outcome(
        not len(both.filter(pl.col("value") > pl.col("ci_high_other"))),
        "; ".join(
            f"{dataset}: {student:.3f} nats per token, the teacher {teacher:.3f} (up to {high:.3f})"
            for dataset, student, teacher, high in both.select(
                "dataset", "value", "value_other", "ci_high_other"
            ).iter_rows()
        ),
        warn=True,
    )


def judge_is_consistent(store: Store, study: str, *models: str) -> Outcome:
    """Check that fewer than half of the judge's verdicts flip with the order in which it reads the outputs."""
    import polars as pl

    flips = pl.concat(
        [
            read(store, "evaluations", study=study, ablation=model)
            .filter((pl.col("metric") == "position_bias") | pl.col("metric").str.starts_with("position_bias_vs_"))
            .select("value", "n", model=pl.lit(model))
            for model in models
        ]
    )
    if not len(flips):
        return outcome(True, "nothing was judged; the asset's metadata says why", warn=True)
    worst = flips.sort("value", descending=True).row(0, named=True)
    consistent = worst["value"] < 0.5
    return outcome(
        consistent,
        f"{worst['value']:.0%} of the {worst['n']} verdicts on {worst['model']} flip with the order of the outputs"
        + ("" if consistent else ": the win rate measures the judge's bias, not the model"),
        warn=True,
        flipped=worst["value"],
        pairs=worst["n"],
    )


def _loss(store: Store, study: str, row: str, split: str) -> "pl.DataFrame":
    """Return `dataset, value, ci_low, ci_high` of a model's loss; no rows if the model is not evaluated yet."""
    import polars as pl

    from tokenuq_ml.tables.fetching import fetch_partition

    fetch_partition(store.home, "evaluations", study=study, ablation=row)
    if not store.path(table_path("evaluations", study=study, ablation=row)).is_dir():
        return pl.DataFrame(schema={"dataset": pl.String, **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64)})
    return (
        read(store, "evaluations", study=study, ablation=row)
        .filter((pl.col("metric") == "loss") & (pl.col("split") == split))
        .select("dataset", "value", "ci_low", "ci_high")
    )


def _compare(store: Store, study: str, ablation: str, other: str, split: str) -> "pl.DataFrame":
    """Return the losses of a student and of base model or teacher (`..._other`), by dataset."""
    return _loss(store, study, ablation, split).join(_loss(store, study, other, split), on="dataset", suffix="_other")


def _nothing_to_compare(study: str) -> Outcome:
    return outcome(False, f"nothing to compare with: materialise {study}/reference_evaluation", warn=True)
