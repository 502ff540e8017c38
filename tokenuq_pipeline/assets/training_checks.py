"""The asset check of teacher and students: losses, gradients and weights are finite.

Training itself stops where they are not (`tokenuq_ml/training/finite_steps.py`). The check holds for what is published,
however it was made.
"""

from tokenuq_ml.config import TEACHER_ROW
from tokenuq_pipeline.assets.asset import StageCheck
from tokenuq_pipeline.assets.check_outcome import Outcome, outcome, read
from tokenuq_pipeline.runtime.bucket_store import fetch
from tokenuq_pipeline.runtime.store import Store


def training_is_finite_check(study: str, row: str, adapter: str, *tables: str, asset: str | None = None) -> StageCheck:
    """Return the check `training_is_finite`, which runs in the op that trains.

    Args:
        study: the study.
        row: the ablation, `teacher`, or a candidate for the teacher.
        adapter: path of the adapter in the store.
        *tables: the tables of the training.
        asset: the asset that holds them; default: the row's student, or the teacher.
    """
    return StageCheck(
        "training_is_finite",
        "Check that the losses and gradients of training, and the adapter's weights, are finite.",
        lambda store: training_is_finite(store, study, row, adapter, *tables, asset=asset),
    )


def training_is_finite(
    store: Store, study: str, row: str, adapter: str, *tables: str, asset: str | None = None
) -> Outcome:
    """Check that no number of the tables or of the adapter is NaN or infinite; a null loss had no tokens."""
    import polars as pl
    import polars.selectors as cs

    from tokenuq_ml.tensor_digest import non_finite_values

    bad: dict[str, int] = {}
    for table in tables:
        numbers = read(store, table, study=study, ablation=row).select(cs.float())
        counts = numbers.select((~pl.all().is_finite()).sum()).row(0, named=True)
        bad |= {f"{table}.{column}": count for column, count in counts.items() if count}
    asset = asset or (f"{study}/baseline_teacher" if row == TEACHER_ROW else f"{study}/{row}/student")
    fetch(store, asset, lambda path: path.startswith(f"{adapter}/"))
    files = sorted(store.path(adapter).glob("*.safetensors"))
    for file in files:
        bad |= non_finite_values(file)
    description = ", ".join(f"{name}: {count}" for name, count in list(bad.items())[:5])
    return outcome(
        files and not bad,
        f"{sum(bad.values())} numbers are not finite ({description})"
        if bad
        else ("all numbers are finite" if files else f"{adapter} holds no weights"),
        not_finite=sum(bad.values()),
    )
