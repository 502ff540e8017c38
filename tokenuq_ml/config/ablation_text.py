"""An ablation as one sentence, for the UI and for model cards."""

from tokenuq_ml.config import AblationSpec, ObjectiveSpec, Schedule


def ablation_sentence(ablation: AblationSpec) -> str:
    """Return which tokens the ablation selects, and how it trains them and the rest."""
    select = ablation.select
    seed = f"; seed {ablation.seed}"
    growth = f"; LoRA rank grows from {ablation.rank_growth.start}" if ablation.rank_growth else ""
    if ablation.train.values:
        growth += f"; {ablation.train.text}"
    if ablation.budget != "equal_steps":
        growth += "; as many trained tokens as a training on every token"
    if select.by == "all":
        return f"Every response token: {_treatment(ablation.selected)}{growth}{seed}."
    units = "tokens" if select.unit == "token" else "examples"
    if select.keep in ("top", "bottom"):
        which = f"The {select.keep} {_amount(select.quantile, '{:.0%}')} of {units}"
    else:
        which = f"The {units} {select.keep} {_amount(select.threshold, '{:g}')}"
    return (
        f"{which} by {select.by} ({ablation.selection_kind}, per {select.scope}): {_treatment(ablation.selected)}; "
        f"the rest: {_treatment(ablation.rest)}{growth}{seed}."
    )


def _amount(value: float | Schedule | str | None, form: str) -> str:
    assert value is not None
    if isinstance(value, Schedule):
        return f"{form.format(value.start)} to {form.format(value.end)}"
    return value.replace("_", " ") if isinstance(value, str) else form.format(value)


def _treatment(objective: ObjectiveSpec) -> str:
    distill = objective.distill
    if distill is None:
        return "not trained" if objective.kind == "none" else f"trained by {objective.text}"
    kept = "" if distill.top_k is None else f", its {distill.top_k} likeliest tokens"
    to_teacher = f"{distill.divergence} to the {distill.teacher} teacher, temperature {distill.temperature:g}{kept}"
    if not objective.is_sum:
        return to_teacher
    return f"trained by {objective.text.replace('+distill', '')} and {distill.weight:g} x {to_teacher}"
