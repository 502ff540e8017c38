"""The asset `curriculum` of a student: the categories of its selected tokens, and its uncertainty over training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import CurriculumSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.adapters import TrainedModel, put_adapter_weights
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.reports import plots
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.curriculum import (
    MeasuredSnapshot,
    Snapshot,
    distinct_snapshots,
    first_by_id,
    selected_by_category,
    snapshot_at,
    uncertainty_over_training,
)
from tokenuq_ml.scoring.mc_dropout import token_uncertainty, uncertainty_plan
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.adapted_model import StoredModel
from tokenuq_ml.stages.batch_work import ExampleBatches, Job
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.measures import LossMeasure, UncertaintyMeasure
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest


@dataclass(frozen=True)
class TrainedStudent:
    """What evaluation and curriculum read of a student."""

    selections: pl.DataFrame
    adapter: Path
    snapshots: Path


@dataclass(frozen=True)
class Probe:
    """A fixed set of examples, and how the uncertainty of a model is measured on them."""

    examples: list[TokenizedExample]
    spec: UncertaintySpec
    numerics: Numerics


def measure_curriculum(
    context: StageContext,
    model: TrainedModel,
    stored: StoredModel,
    student: TrainedStudent,
    examples: list[TokenizedExample],
) -> None:
    """Fill the outputs `curriculum`, `curriculum_uncertainty` and `plots`, and report the asset.

    A rank other than 0 measures its share of the batches.

    Args:
        context: of the asset `curriculum`.
        model: the base model with the student's adapter active; each snapshot is loaded into that adapter.
        stored: the same model, for other processes.
        student: the student's selections and adapters.
        examples: at least the validation examples of the study.
    """
    token_losses = read_table(context.input("token_losses"))
    probe, snapshots = _probe(context, examples), _snapshots(context, student)
    # One line per snapshot.
    progress = Progress(context.reporter, context.name, len(snapshots), "snapshots", every_s=0)
    uncertainty = uncertainty_over_training(
        _measured(model, stored, probe, snapshots), token_losses, progress=lambda line: progress.add(1, line)
    )
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


def _probe(context: StageContext, examples: list[TokenizedExample]) -> Probe:
    fields = context.asset.fields
    curriculum, uncertainty = CurriculumSpec(**fields["curriculum"]), UncertaintySpec(**fields["uncertainty"])
    validation = (example for example in examples if example.split == "validation")
    return Probe(
        first_by_id(validation, curriculum.examples),
        uncertainty.model_copy(update={"samples": curriculum.samples}),
        context.numerics,
    )


def _snapshots(context: StageContext, student: TrainedStudent) -> list[Snapshot]:
    steps = int(student.selections["step"].max())
    fractions = CurriculumSpec(**context.asset.fields["curriculum"]).fractions
    return distinct_snapshots(
        snapshot_at(fraction, steps, student.adapter, student.snapshots) for fraction in fractions
    )


def _measured(
    model: TrainedModel, stored: StoredModel, probe: Probe, snapshots: list[Snapshot]
) -> Iterator[MeasuredSnapshot]:
    """Yield what is measured of each snapshot, here or by the processes of a cluster."""
    actors, numerics = batch_actors.current(), probe.numerics
    if actors is not None:
        jobs = [job for snapshot in snapshots for job in _jobs(model, stored, probe, snapshot)]
        results = actors.run(jobs, numerics)
        for snapshot in snapshots:
            losses, uncertainty = pl.concat([scored.rows for scored in next(results)]), pl.concat(next(results))
            yield MeasuredSnapshot(snapshot, losses, uncertainty)
        return
    for snapshot in snapshots:
        put_adapter_weights(model, stored.name, snapshot.folder)
        losses = score_examples(model, probe.examples, numerics)
        uncertainty = token_uncertainty(model, probe.examples, probe.spec, numerics)
        yield MeasuredSnapshot(snapshot, losses, uncertainty)


def _jobs(model: TrainedModel, stored: StoredModel, probe: Probe, snapshot: Snapshot) -> list[Job]:
    """Return the same work as jobs for other processes: losses, then BALD."""
    own = StoredModel(
        stored.base,
        stored.adapter if snapshot.folder is None else str(snapshot.folder),
        stored.name,
        stored.precision,
        is_fresh=snapshot.folder is None,
        settings=stored.settings,
    )
    plans = BatchPlan.of(model, probe.numerics), uncertainty_plan(model, probe.spec, probe.numerics)
    measures = LossMeasure(own), UncertaintyMeasure(own, probe.spec)
    return [
        Job(ExampleBatches(probe.examples, plan), measure, group=plan.workers)
        for plan, measure in zip(plans, measures, strict=True)
    ]


def _figures(uncertainty: pl.DataFrame) -> dict[str, float | None]:
    overall = uncertainty.filter(pl.col("category") == "all").sort("step")
    return {
        "first_loss": overall["loss"][0],
        "final_loss": overall["loss"][-1],
        # BALD of the fresh adapter is 0 by construction: its output is 0, with or without dropout.
        "bald_at_first_snapshot": overall.filter(pl.col("step") > 0)["bald"].first(),
        "final_bald": overall["bald"][-1],
    }
