"""Child process of a teacher: an adapter, or a complete model, fine-tuned by plain MLE.

Makes `<study>/baseline_teacher`; or one of the candidates for it, which is also measured on the validation split; or a
further teacher of the adapter ensemble.
"""

import shutil

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import TEACHER_ROW, AblationSpec, SelectSpec, TrainSpec, spec_hash
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.evaluation.validation import VALIDATION, mean_loss, validation_losses
from tokenuq_ml.models.adapters import TrainedModel, add_trained_weights
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.own_dropout import require_dropout
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import STUDENT_ADAPTER, AdaptedModel, as_measured, load_trained_base
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.evaluate_model import held_out_tokens
from tokenuq_ml.stages.kept_folders import forget_kept
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.tracked_stage import require_trackers, tracked_training
from tokenuq_ml.stages.train_adapter import checkpoint_dir, model_digest, store_adapter
from tokenuq_ml.tables.parquet import content_of, read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.trainer import train

VANILLA_MLE = AblationSpec(name="vanilla", select=SelectSpec(by="all"))


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `adapter`, `training_log` and `plots`; those of a candidate also have `validation_losses`.

    Raises:
        InputError: the model drops nothing, so that BALD of this teacher would be 0; or its training fails.
    """
    (stage,) = request.assets
    fields = request.assets[stage].fields
    require_trackers(request)
    spec, seed = _train_spec(request, fields), fields["seed"]
    base, numerics = load_trained_base(
        request.inputs["model"], fields["precision"], spec, request.sharding, request.base_settings
    )
    if "drops_attention" in fields:
        # Before hours of training: the study measures BALD of this teacher.
        require_dropout(base, fields["drops_attention"])
    context = StageContext(stage, request, reporter, numerics)
    examples = read_examples(context.input("tokenized_dataset"), ["train"])
    work_dir = checkpoint_dir(
        context,
        model=model_digest(context.input("model")),
        dataset=content_of(context.input("tokenized_dataset")),
        **({"setting": spec_hash(spec.fields())} if "candidates" in fields else {}),
    )
    model = add_trained_weights(base, spec, seed)
    fractions = tuple(fields.get("fractions", ()))
    setup = TrainingSetup(examples, spec, VANILLA_MLE, seed, numerics, snapshot_fractions=fractions)
    tracking = tracked_training(context, work_dir)
    recorder = train(model, setup, work_dir, reporter, context.name, tracking)
    trained = store_adapter(context, model, recorder, work_dir) if process_group.is_main() else None
    if trained is not None and tracking is not None:
        trained = trained.with_figures(tracking.figures)
    losses = None
    if stage == "candidate_teacher":
        # The adapter is there for every rank.
        process_group.barrier()
        loaded = as_measured(model, numerics)
        # The function holds the only reference, so that the model is freed if another precision is asked for.
        del base, model
        losses = _validation_losses(context, loaded)
    if trained is None:
        return
    digests, figures = [trained.digest, trained.log_digest], trained.figures
    if losses is not None:
        table = "validation_losses"
        digests.append(write_table(losses, table, context.output(table), **context.asset.stamp))
        figures = {**figures, "validation_loss": mean_loss(losses)}
    context.done(joined_digest(*digests), figures, plots={"Training curve": "plots/training_curve.png"})
    # Only after the report: an interrupted training resumes, a forced rerun trains from the first step.
    shutil.rmtree(work_dir)
    forget_kept(context)


def _train_spec(request: StageRequest, fields: dict) -> TrainSpec:
    """Return the budget; of a member of an ensemble whose teacher is one of several candidates, that of the chosen."""
    if "candidates" not in fields:
        return TrainSpec(**fields["train"])
    chosen = read_table(request.inputs["teacher_candidates"]).filter("chosen")["candidate"].item()
    return TrainSpec(**fields["candidates"][chosen])


def _validation_losses(context: StageContext, loaded: tuple[TrainedModel, Numerics] | None) -> pl.DataFrame | None:
    """Return the table `validation_losses` of the trained adapter; None on a rank other than 0.

    Args:
        context: of the candidate.
        loaded: the trained model, if measuring need not load it again.
    """
    request, fields, adapter = context.request, context.asset.fields, context.output("adapter")
    teacher = AdaptedModel(
        request.inputs["model"], adapter, STUDENT_ADAPTER, loaded, request.sharding, request.base_settings
    )
    del loaded
    model, numerics = teacher.at(fields["tables"])
    candidate = Candidate(
        model,
        load_tokenizer(request.inputs["model"]),
        adapter,
        family=request.ablation or TEACHER_ROW,
        seed=fields["seed"],
        name=context.name,
        stored=teacher.stored(numerics),
    )
    measured = StageContext(context.stage, request, context.reporter, numerics)
    examples = read_examples(context.input("tokenized_dataset"), [VALIDATION])
    tokens = held_out_tokens(measured, candidate, examples)
    return validation_losses(tokens) if process_group.is_main() else None


if __name__ == "__main__":
    runner.main(run)
