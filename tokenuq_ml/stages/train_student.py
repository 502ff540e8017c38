"""Child process of one ablation: train the student, follow its curriculum, evaluate it.

One process for up to three assets; each is reported as soon as it is whole. Asked only for
a later one, it works from the published student.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from tokenuq_ml.config import AblationSpec, CurriculumSpec, TrainSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample, read_examples
from tokenuq_ml.models.adapters import adapter_digest, add_adapter, attach_adapter, freeze_adapter
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.reports import plots
from tokenuq_ml.reports.evaluation_plot import TITLE, metric_intervals
from tokenuq_ml.scoring import curriculum as curricula
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import AdaptedModel
from tokenuq_ml.stages.evaluate_model import Candidate, evaluate_and_store, forget_answers
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.stages.train_adapter import checkpoint_dir, model_digest, train_and_store
from tokenuq_ml.tables.parquet import content_of, read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest, tensors_digest
from tokenuq_ml.training.objectives import distillation, has_gain
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import CachedTeacher, OnlineTeacher, why_online
from tokenuq_ml.training.token_columns import read_columns

STUDENT, TEACHER = "default", "teacher"


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Make whichever of its three assets are asked for."""
    assets, inputs = request.assets, request.inputs
    examples = read_examples(inputs["tokenized_dataset"])
    kept, loaded = None, None
    if "student" in assets:
        loaded, trained, kept = _student(request, examples, reporter)
    else:
        trained = Trained(read_table(inputs["selections"]), Path(inputs["adapter"]), Path(inputs["snapshots"]))
    student = AdaptedModel(inputs["model"], trained.adapter, STUDENT, loaded)
    # The trained model is the holder's alone, so that it is freed where another precision is asked for.
    del loaded
    if "evaluation" in assets:
        _evaluation(request, *student.at(assets["evaluation"].fields["precision"]), examples, trained, reporter)
    if "curriculum" in assets:
        _curriculum(request, *student.for_bald(), examples, trained, reporter)
    if kept is not None:
        shutil.rmtree(kept)


@dataclass(frozen=True)
class Trained:
    """What the curriculum needs of a student: its selections, and where its adapters lie."""

    selections: pl.DataFrame
    adapter: Path
    snapshots: Path


def _student(
    request: StageRequest, examples: list[TokenizedExample], reporter: StageReporter
) -> tuple[tuple[PeftModel, Numerics], Trained, Path]:
    """Train and report the student; return it with copies of its files, in a folder that the caller removes.

    Copies, because outputs are moved away as soon as they are reported.
    """
    asset = request.assets["student"]
    fields, name = asset.fields, f"{request.study}/{request.ablation}/student"
    spec, ablation = TrainSpec(**fields["train"]), AblationSpec(**fields["ablation"])
    train_examples = [example for example in examples if example.split == "train"]
    inputs = {
        "model": model_digest(request.inputs["model"]),
        "dataset": content_of(request.inputs["tokenized_dataset"]),
    }
    spec = spec.model_copy(update={"lora": ablation.lora.of(spec.lora)})
    base, numerics = load_model(request.inputs["model"], fields["precision"])
    model = add_adapter(base, spec.lora, ablation.seed)
    setup = TrainingSetup(
        train_examples, spec, ablation, ablation.seed, numerics, snapshot_fractions=tuple(fields["fractions"])
    )
    distil = distillation(ablation)
    teacher = distil.teacher if distil else None
    cached = teacher == "baseline" and fields["teacher_states"] == "cached"
    over_budget = why_online(request.inputs["teacher_hidden"]) if cached else None
    if cached and over_budget is None:
        folder = request.inputs["teacher_hidden"]
        setup.teacher = CachedTeacher(
            folder,
            numerics.device,
            dataset_digest=inputs["dataset"],
            teacher_digest=adapter_digest(request.inputs["teacher"]),
            # A gain is no part of what mean embeddings give.
            distillation=None if has_gain(ablation) else distil,
        )
        inputs["teacher"] = tensors_digest(Path(folder, "hidden.safetensors"))
    elif teacher == "baseline":
        attach_adapter(model, request.inputs["teacher"], TEACHER)
        setup.teacher = OnlineTeacher(TEACHER, numerics)
        inputs["teacher"] = tensors_digest(Path(request.inputs["teacher"], "adapter_model.safetensors"))
    elif teacher == "base":
        setup.teacher = OnlineTeacher(None, numerics)
    if ablation.columns_read:
        setup.columns = read_columns(ablation.columns_read, request.inputs, train_examples)
        inputs |= {table: content_of(request.inputs[table]) for table in ablation.tables_read}
    work_dir = checkpoint_dir(request.work_dir, asset, setup, **inputs)
    trained = train_and_store(model, setup, asset, work_dir, reporter, name)
    selections = trained.recorder.selections()
    shutil.copytree(asset.outputs["adapter"], work_dir / "adapter", dirs_exist_ok=True)
    selections_digest = write_table(
        selections,
        "selections",
        asset.outputs["selections"],
        **asset.stamp,
    )
    reporter.done(
        AssetResult(
            stage="student",
            data_version=joined_digest(trained.digest, trained.log_digest, selections_digest),
            metrics={
                **trained.figures,
                "selection": ablation.selection_kind,
                "lora_rank": spec.lora.rank,
                "final_lora_rank": trained.recorder.lora_rank,
                "teacher": teacher or "none",
                "teacher_states": getattr(setup.teacher, "form", "online") if teacher else "none",
                **({"teacher_states_reason": over_budget} if over_budget else {}),
            },
            plots={"Training curve": "plots/training_curve.png"},
        )
    )
    # A forced rerun is to train anew, not to find this run's last checkpoint.
    for checkpoint in work_dir.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    files = Trained(selections, work_dir / "adapter", work_dir / "snapshots")
    return (freeze_adapter(model), numerics), files, work_dir


def _evaluation(
    request: StageRequest,
    model: PeftModel,
    numerics: Numerics,
    examples: list[TokenizedExample],
    trained: Trained,
    reporter: StageReporter,
) -> None:
    asset = request.assets["evaluation"]
    candidate = Candidate(
        model,
        load_tokenizer(request.inputs["model"]),
        numerics,
        trained.adapter,
        family=asset.fields["family"],
        seed=asset.fields["seed"],
        name=f"{request.study}/{request.ablation}/evaluation",
    )
    digest, figures = evaluate_and_store(candidate, examples, asset, request, reporter)
    metric_intervals(
        {request.ablation or "student": read_table(asset.outputs["evaluations"])},
        Path(asset.outputs["plots"], "metrics.png"),
    )
    reporter.done(
        AssetResult(
            stage="evaluation",
            data_version=digest,
            metrics={**figures, **numerics.fields()},
            plots={TITLE: "plots/metrics.png"},
        )
    )
    forget_answers(request)


def _curriculum(
    request: StageRequest,
    model: PeftModel,
    numerics: Numerics,
    examples: list[TokenizedExample],
    trained: Trained,
    reporter: StageReporter,
) -> None:
    asset = request.assets["curriculum"]
    spec, uncertainty = CurriculumSpec(**asset.fields["curriculum"]), UncertaintySpec(**asset.fields["uncertainty"])
    token_losses = read_table(request.inputs["token_losses"])
    selected = curricula.selected_by_category(trained.selections, token_losses)
    steps = int(trained.selections["step"].max())
    points = [(f, *curricula.adapter_at(f, steps, trained.adapter, trained.snapshots)) for f in spec.fractions]
    sample = curricula.fixed_sample([example for example in examples if example.split == "validation"], spec.examples)
    over_training = curricula.uncertainty_over_training(
        model,
        lambda folder: _load_into(model, folder),
        points,
        sample,
        token_losses,
        spec,
        uncertainty,
        numerics,
        reporter,
        f"{request.study}/{request.ablation}/curriculum",
    )
    digests = [
        write_table(selected, "curriculum", asset.outputs["curriculum"], **asset.stamp),
        write_table(over_training, "curriculum_uncertainty", asset.outputs["curriculum_uncertainty"], **asset.stamp),
    ]
    folder = Path(asset.outputs["plots"])
    plots.selected_categories(selected, folder / "selected_categories.png")
    plots.uncertainty_over_training(over_training, folder / "uncertainty_over_training.png")
    overall = over_training.filter(pl.col("category") == "all").sort("step")
    reporter.done(
        AssetResult(
            stage="curriculum",
            data_version=joined_digest(*digests),
            metrics={
                "validation_examples": len(sample),
                "first_loss": overall["loss"][0],
                "final_loss": overall["loss"][-1],
                # With a fresh adapter dropout has nothing to drop, so BALD at 0% is 0 by construction.
                "bald_at_first_snapshot": overall.filter(pl.col("step") > 0)["bald"].first(),
                "final_bald": overall["bald"][-1],
                **numerics.fields(),
            },
            plots={
                "Selected categories over steps": "plots/selected_categories.png",
                "Uncertainty over training": "plots/uncertainty_over_training.png",
            },
        )
    )


def _load_into(model: PeftModel, folder: Path | None) -> None:
    """Put a stored adapter's weights into the active one; None puts back a fresh one, whose B is zero."""
    if folder is not None:
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name=STUDENT)
        return
    for name, parameter in model.named_parameters():
        if f"lora_B.{STUDENT}" in name:
            parameter.data.zero_()


if __name__ == "__main__":
    runner.main(run)
