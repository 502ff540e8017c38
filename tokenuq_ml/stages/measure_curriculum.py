"""The asset `curriculum` of a student: the categories of its selected tokens, and its uncertainty over training."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from tokenuq_ml import process_group
from tokenuq_ml.config import CurriculumSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.reports import plots
from tokenuq_ml.scoring.curriculum import (
    UncertaintyProbe,
    first_by_id,
    selected_by_category,
    snapshot_at,
    uncertainty_over_training,
)
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest


@dataclass(frozen=True)
class TrainedStudent:
    """What evaluation and curriculum read of a student."""

    selections: pl.DataFrame
    adapter: Path
    snapshots: Path


def measure_curriculum(
    context: StageContext, model: PeftModel, student: TrainedStudent, examples: list[TokenizedExample]
) -> None:
    """Fill the outputs `curriculum`, `curriculum_uncertainty` and `plots`, and report the asset.

    A rank other than 0 measures its share of the batches.

    Args:
        context: of the asset `curriculum`.
        model: the base model with the student's adapter active; each snapshot is loaded into that adapter.
        student: the student's selections and adapters.
        examples: at least the validation examples of the study.
    """
    token_losses = read_table(context.input("token_losses"))
    probe = _probe(context, examples, token_losses)
    uncertainty = _uncertainty(context, model, student, probe)
    if not process_group.is_main():
        return
    selected = selected_by_category(student.selections, token_losses)
    digests = [
        write_table(frame, name, context.output(name), **context.asset.stamp)
        for name, frame in (("curriculum", selected), ("curriculum_uncertainty", uncertainty))
    ]
    folder = context.output("plots")
    plots.selected_categories(selected, folder / "selected_categories.png")
    plots.uncertainty_over_training(uncertainty, folder / "uncertainty_over_training.png")
    context.done(
        joined_digest(*digests),
        {"validation_examples": len(probe.examples), **_figures(uncertainty)},
        plots={
            "Selected categories over steps": "plots/selected_categories.png",
            "Uncertainty over training": "plots/uncertainty_over_training.png",
        },
    )


def _probe(context: StageContext, examples: list[TokenizedExample], token_losses: pl.DataFrame) -> UncertaintyProbe:
    fields = context.asset.fields
    curriculum, uncertainty = CurriculumSpec(**fields["curriculum"]), UncertaintySpec(**fields["uncertainty"])
    validation = (example for example in examples if example.split == "validation")
    return UncertaintyProbe(
        first_by_id(validation, curriculum.examples),
        token_losses,
        uncertainty.model_copy(update={"samples": curriculum.samples}),
        context.numerics,
    )


def _uncertainty(
    context: StageContext, model: PeftModel, student: TrainedStudent, probe: UncertaintyProbe
) -> pl.DataFrame:
    steps = int(student.selections["step"].max())
    fractions = CurriculumSpec(**context.asset.fields["curriculum"]).fractions
    return uncertainty_over_training(
        model,
        [snapshot_at(fraction, steps, student.adapter, student.snapshots) for fraction in fractions],
        probe,
        load=partial(_load_into, model),
        progress=lambda line: context.reporter.info(f"{context.name}: {line}"),
    )


def _figures(uncertainty: pl.DataFrame) -> dict[str, float | None]:
    overall = uncertainty.filter(pl.col("category") == "all").sort("step")
    return {
        "first_loss": overall["loss"][0],
        "final_loss": overall["loss"][-1],
        # BALD of the fresh adapter is 0 by construction: its output is 0, with or without dropout.
        "bald_at_first_snapshot": overall.filter(pl.col("step") > 0)["bald"].first(),
        "final_bald": overall["bald"][-1],
    }


def _load_into(model: PeftModel, folder: Path | None) -> None:
    """Load a stored adapter's weights into the active adapter; None restores a fresh one, whose B is zero."""
    name = model.active_adapter
    if folder is not None:
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name=name)
        return
    for path, parameter in model.named_parameters():
        if f"lora_B.{name}" in path:
            parameter.data.zero_()
