"""Child process of `<study>/true_divergence`: the teacher's divergence from the truth, over its training.

Only studies on a synthetic language have this asset. Everything is measured in float32: small divergences would drown
in the rounding of bfloat16.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import TrainedModel, use_adapter
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.curriculum import Snapshot, snapshot_at
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER, AdaptedModel
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.tensor_digest import joined_digest

STAGE = "true_divergence"
OVER_TRAINING = "true_divergence_over_training"
_DIVERGENCES = ("true_kl", "clean_kl")
_SNAPSHOT_COLUMNS = ("fraction", "step", *TOKEN_KEY, "loss", "entropy", "expected_entropy", "bald", *_DIVERGENCES)


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `true_divergence` and `true_divergence_over_training`."""
    truth = TokenTruth.read(request.inputs["token_truth"])
    examples = [one for one in read_examples(request.inputs["tokenized_dataset"]) if truth.has(one)]
    if not examples:
        raise InputError("token_truth has no row of the study's examples; materialise tokenized_dataset again")
    frames, numerics = {}, None
    for snapshot in _snapshots(request):
        model, numerics = _loaded(request, snapshot)
        context = StageContext(STAGE, request, reporter, numerics)
        frames[snapshot.step] = _measured(context, model, snapshot, examples, truth)
        mean = frames[snapshot.step]["true_kl"].mean()
        reporter.info(f"{context.name}: at {snapshot.fraction:.0%} of training: divergence {mean:.4f} nats per token")
    assert numerics is not None
    _report(StageContext(STAGE, request, reporter, numerics), frames)


def _snapshots(request: StageRequest) -> Iterator[Snapshot]:
    """Yield the fresh adapter, which is the base model, and the teacher after shares of its training."""
    inputs, seen = request.inputs, set()
    steps = int(read_table(inputs["training_log"])["step"].max())
    for fraction in sorted({0.0, *request.assets[STAGE].fields["fractions"], 1.0}):
        snapshot = snapshot_at(fraction, steps, Path(inputs["adapter"]), Path(inputs["snapshots"]))
        if snapshot.step not in seen:
            seen.add(snapshot.step)
            yield snapshot


def _loaded(request: StageRequest, snapshot: Snapshot) -> tuple[TrainedModel, Numerics]:
    """Return the model with the snapshot's adapter, or with the teacher's, which is off at step 0."""
    adapter = snapshot.folder or request.inputs["adapter"]
    return AdaptedModel(request.inputs["model"], adapter, TEACHER_ADAPTER, settings=request.base_settings).at("float32")


def _measured(
    context: StageContext,
    model: TrainedModel,
    snapshot: Snapshot,
    examples: list[TokenizedExample],
    truth: TokenTruth,
) -> pl.DataFrame:
    """Return the rows of `true_divergence_over_training` of one snapshot."""
    spec, tokens = UncertaintySpec(**context.asset.fields["uncertainty"]), sum(len(one.input_ids) for one in examples)
    # Dropout acts inside the adapter, which a fresh one would add nothing by.
    drops_nothing = snapshot.folder is None and isinstance(model, PeftModel)
    passes = 1 if drops_nothing else 1 + spec.samples
    progress = context.progress(passes * tokens, what=f"at {snapshot.fraction:.0%} of training")
    with use_adapter(model, None if snapshot.folder is None else TEACHER_ADAPTER):
        rows = score_examples(model, examples, context.numerics, progress.add, truth=truth)
        if drops_nothing:
            nothing = (pl.lit(None, pl.Float32).alias(name) for name in ("expected_entropy", "bald"))
            rows = rows.with_columns(nothing)
        else:
            sampled = token_uncertainty(model, examples, spec, context.numerics, progress.add)
            sampled = sampled.select(*TOKEN_KEY, "expected_entropy", "bald")
            rows = rows.join(sampled, on=TOKEN_KEY, validate="1:1")
    return rows.with_columns(fraction=snapshot.fraction, step=snapshot.step).select(_SNAPSHOT_COLUMNS)


def _report(context: StageContext, frames: dict[int, pl.DataFrame]) -> None:
    """Write both tables, and report the asset."""
    base, teacher = frames[min(frames)], frames[max(frames)]
    both = teacher.select(*TOKEN_KEY, *_DIVERGENCES).join(
        base.select(*TOKEN_KEY, pl.col(_DIVERGENCES).name.prefix("base_")), on=TOKEN_KEY, validate="1:1"
    )
    over_training = pl.concat(frames[step] for step in sorted(frames))
    digests = [
        write_table(frame, name, context.output(name), **context.asset.stamp)
        for name, frame in ((STAGE, both), (OVER_TRAINING, over_training))
    ]
    means = both.select(pl.exclude(TOKEN_KEY).mean().name.prefix("mean_")).to_dicts()[0]
    context.done(joined_digest(*digests), {"tokens": len(both), "snapshots": len(frames), **means})


if __name__ == "__main__":
    runner.main(run)
