"""The asset check of a student: as many tokens are selected as its spec says."""

from typing import TYPE_CHECKING

from tokenuq_ml.config import AblationSpec, Schedule
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_pipeline.assets.asset import StageCheck
from tokenuq_pipeline.assets.check_outcome import Outcome, outcome, read
from tokenuq_pipeline.runtime.store import Store

if TYPE_CHECKING:
    import polars as pl


def selected_share_check(study: str, ablation: AblationSpec) -> StageCheck:
    """Return the check `selected_share`, which runs in the student's op because that op also makes what follows."""
    return StageCheck(
        "selected_share",
        "Check that as many tokens are selected as the spec says.",
        lambda store: selections_as_specified(store, study, ablation),
    )


def selections_as_specified(store: Store, study: str, ablation: AblationSpec) -> Outcome:
    """Check that `ceil(q * N)` tokens of each optimiser batch, or of the train split, are selected.

    A threshold asks for no number.
    """
    import polars as pl

    rows = read(store, "selections", study=study, ablation=ablation.name)
    select = ablation.select
    if select.scope == "dataset" and select.by != "all":
        rows = _one_value(rows, [*TOKEN_KEY]).with_columns(step=pl.lit(0))
        if rows["differs"].any():
            return outcome(False, "a static selection changed between steps", tokens=int(rows["differs"].sum()))
    if select.unit == "document":
        rows = _one_value(rows, ["step", "example_id"])
        if rows["differs"].any():
            return outcome(False, "part of an example is selected", examples=int(rows["differs"].sum()))
    units = "tokens" if select.unit == "token" else "examples"
    groups = rows.group_by("step").agg(n=pl.len(), selected=pl.col("selected").sum()).sort("step")
    total, selected = int(groups["n"].sum()), int(groups["selected"].sum())
    figures = {"share": selected / total if total else None, "steps": len(groups)}
    if select.keep in ("above", "below"):
        return outcome(total, f"{selected} of {total} {units} {select.keep} the threshold", **figures)
    last = int(groups["step"].max() or 1)
    wrong = [
        step for step, n, chosen in groups.iter_rows() if chosen != count_selected(quantile_at(ablation, step, last), n)
    ]
    return outcome(
        total and not wrong,
        f"{selected} of {total} {units} selected; {len(wrong)} batches differ from the spec",
        wrong_steps=", ".join(map(str, wrong[:10])) or None,
        **figures,
    )


def quantile_at(ablation: AblationSpec, step: int, steps: int) -> float:
    """Return the quantile that the spec asks for at a step, from 1 to `steps`."""
    select = ablation.select
    if select.by == "all":
        return 1.0
    if isinstance(select.quantile, Schedule):
        return select.quantile.at((step - 1) / (steps - 1) if steps > 1 else 0.0)
    return select.quantile


def _one_value(rows: "pl.DataFrame", keys: list[str]) -> "pl.DataFrame":
    """Return one row per key with its first `selected`, and whether it `differs` within the key."""
    import polars as pl

    return rows.group_by(keys).agg(pl.col("selected").first(), differs=pl.col("selected").n_unique() > 1)
