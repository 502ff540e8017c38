"""Child process that scores the teacher: token losses, hidden states, the reference evaluation, and BALD.

One process makes up to four assets and reports each as soon as it is complete. One model is in memory at a time, in
the precision of the asset; BALD is computed in float32. Of several processes, all score, and rank 0 writes and reports.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import polars as pl
from transformers import PreTrainedTokenizerBase

from tokenuq_ml import process_group
from tokenuq_ml.config import BASE_ROW, REFERENCE_ROWS, TEACHER_ROW, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.stored_examples import StoredExamples, read_examples
from tokenuq_ml.models.adapters import TrainedModel, adapter_digest, use_adapter
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.reports import token_plots
from tokenuq_ml.reports.evaluation_plot import TITLE, metric_intervals
from tokenuq_ml.scoring.bald_reference import float64_uncertainty, reference_rows, reference_sample
from tokenuq_ml.scoring.mc_dropout import uncertainty_batches, uncertainty_plan
from tokenuq_ml.stages import batch_actors, runner
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER, AdaptedModel, StoredModel
from tokenuq_ml.stages.batch_work import Job, SingleBatches, batches_left
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.evaluate_model import evaluate_and_store, forget_answers
from tokenuq_ml.stages.kept_folders import forget_kept, kept_folder
from tokenuq_ml.stages.losses_and_states import (
    LOSSES,
    STATES,
    losses_and_states,
    shard_sizes,
    stored_batches,
    stored_shards,
)
from tokenuq_ml.stages.measures import ReferenceMeasure, UncertaintyMeasure
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.tracked_stage import mirrored
from tokenuq_ml.tables.bald_noise import noise_floor
from tokenuq_ml.tables.kept_parts import Keeper, KeptFrames, KeptParts
from tokenuq_ml.tables.parquet import TableWriter, content_of, read_table, write_table
from tokenuq_ml.tables.shard_rows import ShardRows
from tokenuq_ml.tensor_digest import joined_digest


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Make those of the four assets that the request asks for."""
    inputs = request.inputs
    teacher = AdaptedModel(
        inputs["model"],
        inputs["adapter"],
        TEACHER_ADAPTER,
        sharding=request.sharding,
        settings=request.base_settings,
    )
    tokenizer = load_tokenizer(inputs["model"])
    for stages in _passes(request):
        losses_and_states(request, reporter, stages, teacher, tokenizer)
    if "reference_evaluation" in request.assets:
        examples = read_examples(inputs["tokenized_dataset"], ["test", "ood"])
        _reference_evaluation(request, reporter, teacher, tokenizer, examples)
    if "token_uncertainty" in request.assets:
        model, numerics = teacher.for_bald()
        stored = teacher.stored(numerics)
        _token_uncertainty(StageContext("token_uncertainty", request, reporter, numerics), model, stored)


def _passes(request: StageRequest) -> list[list[str]]:
    """Group losses and states into passes: assets of the same precision on this machine share one."""
    by_dtype: dict = {}
    for stage in (LOSSES, STATES):
        if stage in request.assets:
            dtype = resolve_numerics(request.assets[stage].fields["precision"]).dtype
            by_dtype.setdefault(dtype, []).append(stage)
    return list(by_dtype.values())


def _token_uncertainty(context: StageContext, model: TrainedModel, stored: StoredModel) -> None:
    """Write BALD of every token and its float64 reference, and report the asset."""
    spec = UncertaintySpec(**context.asset.fields["uncertainty"])
    sample = reference_sample(StoredExamples(context.input("tokenized_dataset")))
    written = _write_uncertainty(context, model, stored, spec, [example.example_id for example in sample])
    float64 = _reference(context, model, stored, spec, sample)
    if written is None:
        return
    table, sampled = written
    reference = reference_rows(sampled, float64)
    digest = write_table(reference, "bald_reference", context.output("bald_reference"), **context.asset.stamp)
    rows = pl.scan_parquet(table.path)
    token_plots.uncertainty_spread(rows, context.output("plots") / "uncertainty_spread.png")
    context.done(
        joined_digest(table.digest, digest),
        _uncertainty_figures(spec, rows, reference),
        plots={"Uncertainty of the response tokens": "plots/uncertainty_spread.png"},
    )
    forget_kept(context)


def _write_uncertainty(
    context: StageContext, model: TrainedModel, stored: StoredModel, spec: UncertaintySpec, sample: list[str]
) -> tuple[TableWriter, pl.DataFrame] | None:
    """Write the table `token_uncertainty` shard by shard; return its writer, and the rows of the sampled examples.

    Batches are kept, not only shards: on a CPU, a shard may take minutes. On a rank other than 0, only compute this
    rank's share, and return None.
    """
    dataset, sampled = context.input("tokenized_dataset"), []
    with ExitStack() as files:
        table = TableWriter("token_uncertainty", context.output("token_uncertainty"), **context.asset.stamp)

        def write(rows: pl.DataFrame) -> None:
            table.append(rows)
            sampled.append(rows.filter(pl.col("example_id").is_in(sample)))

        shards, kept = ShardRows(shard_sizes(dataset, context.numerics), write), list[KeptParts]()
        if process_group.is_main():
            files.enter_context(table)
            content = {"dataset": content_of(dataset), "adapter": adapter_digest(context.input("adapter"))}
            folder = kept_folder(context, uncertainty_plan(model, spec, context.numerics), **content)
            kept.append(KeptFrames(folder, lambda frames: shards.add(frames["token_uncertainty"])))
        keeper = files.enter_context(Keeper(kept, context.reporter.info, context.name, "pieces"))
        keeper.resume()
        first, begun = process_group.on_main(lambda: (shards.complete, shards.begun))
        for rows in _measured_uncertainty(context, model, stored, spec, first, begun):
            if process_group.is_main():
                shards.add(rows)
            keeper.put({"token_uncertainty": rows})
    return (table, pl.concat(sampled)) if process_group.is_main() else None


def _measured_uncertainty(
    context: StageContext,
    model: TrainedModel,
    stored: StoredModel,
    spec: UncertaintySpec,
    first: int,
    begun: frozenset[str],
) -> Iterator[pl.DataFrame]:
    """Yield the rows of shard number `first` without the examples `begun`, and of those after it.

    Of each batch that is measured here, or of each shard that the processes of a cluster measure.
    """
    dataset, numerics, actors = context.input("tokenized_dataset"), context.numerics, batch_actors.current()

    def tokens(examples: Iterable[TokenizedExample]) -> int:
        return spec.samples * sum(len(example.input_ids) for example in examples)

    progress = context.progress(tokens(StoredExamples(dataset)))

    def skip(shard: list[TokenizedExample]) -> None:
        progress.skip(tokens(shard))

    if actors is None:
        with float32_passes(model) as dtype:
            plan, numerics = uncertainty_plan(model, spec, numerics), replace(numerics, dtype=dtype)
            for shard in stored_shards(dataset, numerics, first, skip):
                skip([example for example in shard if example.example_id in begun])
                batches = batches_left(plan.batches(shard), begun)
                yield from uncertainty_batches(model, batches, spec, numerics, progress.add)
        return
    plan, measure, jobs = uncertainty_plan(model, spec, numerics), UncertaintyMeasure(stored, spec), []
    for batches, shard in stored_batches(dataset, plan, numerics, first, skip):
        skip([example for example in shard if example.example_id in begun])
        jobs.append(Job(replace(batches, done=begun), measure, group=plan.workers))
    for rows in actors.run(jobs, numerics, progress.add):
        if rows:
            yield pl.concat(rows)


def _reference(
    context: StageContext,
    model: TrainedModel,
    stored: StoredModel,
    spec: UncertaintySpec,
    sample: list[TokenizedExample],
) -> pl.DataFrame:
    """Return the rows of the sampled examples in float64, measured by all ranks or by the processes of a cluster."""
    tokens = sum(len(example.input_ids) for example in sample)
    progress, actors = context.progress(spec.samples * tokens, what="in float64"), batch_actors.current()
    if actors is None:
        return float64_uncertainty(model, sample, spec, progress.add)
    job = Job(SingleBatches(sample), ReferenceMeasure(stored, spec))
    return pl.concat([rows for found in actors.run([job], context.numerics, progress.add) for rows in found])


def _uncertainty_figures(spec: UncertaintySpec, rows: pl.LazyFrame, reference: pl.DataFrame) -> dict:
    columns = rows.select(
        mean_bald=pl.col("bald").mean(),
        max_bald=pl.col("bald").max(),
        mean_bald_std_error=pl.col("bald_std_error").mean(),
        mean_expected_entropy=pl.col("expected_entropy").mean(),
    )
    means, floor = columns.collect(engine="streaming").to_dicts()[0], noise_floor(reference)
    return {
        "samples": spec.samples,
        "dropout": spec.dropout,
        "attention_dropout": spec.attention_dropout,
        "mask": spec.mask,
        **means,
        "bald_noise_floor": floor,
        "bald_noise_share": floor / means["mean_bald"] if means["mean_bald"] else None,
        "bald_noise_tokens": len(reference),
    }


def _reference_evaluation(
    request: StageRequest,
    reporter: StageReporter,
    teacher: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[TokenizedExample],
) -> None:
    """Evaluate the base model and the teacher, and report the asset."""
    model, numerics = teacher.at(request.assets["reference_evaluation"].fields["precision"])
    context = StageContext("reference_evaluation", request, reporter, numerics)
    digests, metrics, tracked = [], {}, {}
    for family, adapter in ((BASE_ROW, None), (TEACHER_ROW, TEACHER_ADAPTER)):
        with use_adapter(model, adapter):
            candidate = Candidate(
                model,
                tokenizer,
                None if adapter is None else context.input("adapter"),
                family=family,
                seed=None,
                name=f"{context.name}: {family}",
                stored=replace(teacher.stored(numerics), is_active=adapter is not None),
            )
            evaluated = evaluate_and_store(context, candidate, examples, suffix=f"_{family}")
        if evaluated is None:
            continue
        digest, figures = evaluated
        digests.append(digest)
        metrics |= {f"{family}_{key}": value for key, value in figures.items()}
        # In the run of the teacher, its own figures have the names that those of students have.
        tracked |= {key if family == TEACHER_ROW else f"{family}_{key}": value for key, value in figures.items()}
    if not process_group.is_main():
        return
    metric_intervals(
        {family: read_table(context.output(f"evaluations_{family}")) for family in REFERENCE_ROWS},
        context.output("plots") / "metrics.png",
    )
    metrics |= mirrored(context, tracked)
    context.done(joined_digest(*digests), metrics, plots={TITLE: "plots/metrics.png"})
    forget_answers(request, metrics)
    forget_kept(context)


if __name__ == "__main__":
    runner.main(run)
