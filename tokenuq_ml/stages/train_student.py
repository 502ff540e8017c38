"""Child process of one ablation: train the student, evaluate it, and measure its curriculum.

One process makes up to three assets and reports each as soon as it is complete. Without the student among them, it
reads the published one. Of several processes, all train and measure, and rank 0 writes and reports.
"""

import shutil
from pathlib import Path

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.models.adapters import TrainedModel, add_trained_weights
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.reports.evaluation_plot import TITLE, metric_intervals
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import STUDENT_ADAPTER, AdaptedModel, as_measured, load_trained_base
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.evaluate_model import evaluate_and_store, forget_answers
from tokenuq_ml.stages.kept_folders import forget_kept
from tokenuq_ml.stages.measure_curriculum import TrainedStudent, measure_curriculum
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.student_setup import StudentSetup, student_setup, student_train_spec
from tokenuq_ml.stages.tracked_stage import mirrored, require_trackers, tracked_training
from tokenuq_ml.stages.train_adapter import TrainedAdapter, checkpoint_dir, store_adapter
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest
from tokenuq_ml.tracking.request import TrackedRun
from tokenuq_ml.training.trainer import train


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Make those of the assets `student`, `evaluation` and `curriculum` that the request asks for."""
    assets, inputs = request.assets, request.inputs
    examples = read_examples(inputs["tokenized_dataset"])
    copies, loaded, tracked = None, None, None
    if "student" in assets:
        require_trackers(request)
        loaded, trained, copies, tracked = _train(request, reporter, examples)
    else:
        trained = TrainedStudent(read_table(inputs["selections"]), Path(inputs["adapter"]), Path(inputs["snapshots"]))
    student = AdaptedModel(
        inputs["model"], trained.adapter, STUDENT_ADAPTER, loaded, request.sharding, request.base_settings
    )
    # `student` holds the only reference, so that the model is freed when another precision is asked for.
    del loaded
    if "evaluation" in assets:
        _evaluate(request, reporter, student, trained, examples, tracked)
    if "curriculum" in assets:
        model, numerics = student.for_bald()
        context = StageContext("curriculum", request, reporter, numerics)
        measure_curriculum(context, model, student.stored(numerics), trained, examples)
    # No rank needs the copies any more.
    process_group.barrier()
    if copies is not None and process_group.is_main():
        shutil.rmtree(copies)


def _train(
    request: StageRequest, reporter: StageReporter, examples: list[TokenizedExample]
) -> tuple[tuple[TrainedModel, Numerics] | None, TrainedStudent, Path, TrackedRun | None]:
    """Train and report the student.

    Returns:
        The trained model (None if measuring has to load it again), the student with copies of its files,
        the folder of the copies, which the caller removes, and its run in trackers. Outputs are moved away as soon as
        they are reported, hence the copies.
    """
    asset = request.assets["student"]
    ablation = AblationSpec(**asset.fields["ablation"])
    spec = student_train_spec(asset.fields, ablation)
    base, numerics = load_trained_base(
        request.inputs["model"], asset.fields["precision"], spec, request.sharding, request.base_settings
    )
    model = add_trained_weights(base, spec, ablation.seed)
    context = StageContext("student", request, reporter, numerics)
    setup = student_setup(context, model, examples, ablation, spec)
    work_dir = checkpoint_dir(context, **setup.input_digests)
    tracking = tracked_training(context, work_dir)
    recorder = train(model, setup.training, work_dir, reporter, context.name, tracking)
    selections = recorder.selections()
    if process_group.is_main():
        trained = store_adapter(context, model, recorder, work_dir)
        shutil.copytree(context.output("adapter"), work_dir / "adapter", dirs_exist_ok=True)
        if tracking is not None:
            trained = trained.with_figures(tracking.figures)
        _report_student(context, setup, trained, recorder.lora_rank, selections)
        # Without checkpoints, a forced rerun trains from the first step.
        for checkpoint in work_dir.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if tracking is not None:
            tracking.forget()
    # The adapter is there for every rank.
    process_group.barrier()
    student = TrainedStudent(selections, work_dir / "adapter", work_dir / "snapshots")
    loaded = as_measured(model, numerics)
    return loaded, student, work_dir, tracking and tracking.run


def _report_student(
    context: StageContext, setup: StudentSetup, trained: TrainedAdapter, lora_rank: int | None, selections: pl.DataFrame
) -> None:
    """Write the table `selections` and report the student."""
    digest = write_table(selections, "selections", context.output("selections"), **context.asset.stamp)
    context.done(
        joined_digest(trained.digest, trained.log_digest, digest),
        {
            **trained.figures,
            "selection": setup.training.ablation.selection_kind,
            "lora_rank": None if lora_rank is None else setup.training.train.lora.rank,
            "final_lora_rank": lora_rank,
            **setup.teacher_metrics,
        },
        plots={"Training curve": "plots/training_curve.png"},
    )


def _evaluate(
    request: StageRequest,
    reporter: StageReporter,
    student: AdaptedModel,
    trained: TrainedStudent,
    examples: list[TokenizedExample],
    tracked: TrackedRun | None,
) -> None:
    """Evaluate the student and report the asset `evaluation`; `tracked` is its run if this process has trained it."""
    asset = request.assets["evaluation"]
    model, numerics = student.at(asset.fields["precision"])
    context = StageContext("evaluation", request, reporter, numerics)
    candidate = Candidate(
        model,
        load_tokenizer(request.inputs["model"]),
        trained.adapter,
        family=asset.fields["family"],
        seed=asset.fields["seed"],
        name=context.name,
        stored=student.stored(numerics),
    )
    evaluated = evaluate_and_store(context, candidate, examples)
    if evaluated is None:
        return
    digest, figures = evaluated
    metric_intervals(
        {request.ablation or "student": read_table(context.output("evaluations"))},
        context.output("plots") / "metrics.png",
    )
    context.done(digest, figures | mirrored(context, figures, tracked), plots={TITLE: "plots/metrics.png"})
    forget_answers(request, figures)
    forget_kept(context)


if __name__ == "__main__":
    runner.main(run)
