"""The assets `token_losses` and `teacher_hidden`: one pass of the teacher over the data makes both.

Each has a pass of its own if training and tables have different precisions. Part of the child process
`score_teacher.py`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml import process_group
from tokenuq_ml.data.batching import StoredExamples, TokenizedExample, shards
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.scoring.batch_threads import BatchPlan, batch_tokens
from tokenuq_ml.scoring.memory import release_free_memory
from tokenuq_ml.scoring.token_losses import ScoredRows, scored_batches
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.adapted_model import AdaptedModel, StoredModel
from tokenuq_ml.stages.batch_actors import BatchActors
from tokenuq_ml.stages.batch_work import Job, LossMeasure, StoredBatches, put_states
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.loss_tables import N_ALTERNATIVES, LossTables
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.teacher_states import new_cache, report_cache, states_fit_budget
from tokenuq_ml.tables.parquet import ROW_GROUP_ROWS
from tokenuq_ml.training.teacher_cache import TeacherCache

LOSSES, STATES = "token_losses", "teacher_hidden"
SHARD_BATCHES = 32
"""Response tokens of a shard, in batches. More take more memory; fewer leave more padding in the shard's last batch."""


def stored_shards(dataset: str | Path, numerics: Numerics) -> Iterator[list[TokenizedExample]]:
    """Yield the examples of a `tokenized_dataset` partition shard by shard, and free memory after each shard."""
    for shard in shards(StoredExamples(dataset), min(ROW_GROUP_ROWS, SHARD_BATCHES * batch_tokens(numerics))):
        yield shard
        release_free_memory()


def stored_batches(
    dataset: str | Path, plan: BatchPlan, numerics: Numerics
) -> Iterator[tuple[StoredBatches, list[TokenizedExample]]]:
    """Yield the batches of the same shards, for the processes that form them, and the examples of each shard."""
    first = 0
    for shard in stored_shards(dataset, numerics):
        yield StoredBatches(Path(dataset), first, len(shard), plan), shard
        first += len(shard)


def losses_and_states(
    request: StageRequest, reporter: StageReporter, stages: list[str], teacher: AdaptedModel, tokenizer
) -> None:
    """Make the assets that `stages` names, all of the same precision, in one pass of the teacher.

    `token_losses` takes a pass of the base model too. Rank 0 writes the tables, and every rank its part of the states.
    """
    model, numerics = teacher.at(request.assets[stages[0]].fields["precision"])
    contexts = {stage: StageContext(stage, request, reporter, numerics) for stage in request.assets if stage in stages}
    if STATES in contexts and not process_group.on_main(lambda: states_fit_budget(contexts[STATES], model)):
        del contexts[STATES]
    if not contexts:
        return
    with ExitStack() as files:
        tables = None
        if LOSSES in contexts and process_group.is_main():
            tables = files.enter_context(LossTables(contexts[LOSSES], tokenizer))
        cache = files.enter_context(new_cache(contexts[STATES], model)) if STATES in contexts else None
        _score(next(iter(contexts.values())), teacher, model, LOSSES in contexts, tables, cache)
    if not process_group.is_main():
        return
    if tables is not None:
        tables.report()
    if cache is not None:
        report_cache(contexts[STATES], model, cache.tokens)


def _score(
    context: StageContext,
    teacher: AdaptedModel,
    model: PeftModel,
    losses: bool,
    tables: LossTables | None,
    cache: TeacherCache | None,
) -> None:
    """Score the dataset shard by shard, with `losses` under the base model too; write each to the tables and the cache.

    The cache alone takes a pass over all splits too: in bfloat16, other batches give other states of the same teacher.
    """
    passes = 2 if losses else 1
    examples = StoredExamples(context.input("tokenized_dataset"))
    progress = context.progress(passes * sum(len(example.input_ids) for example in examples))
    actors = batch_actors.current()
    if actors is None:
        scored = _scored_shards(context, model, losses, cache, progress)
    else:
        jobs = _shard_jobs(context, teacher.stored(context.numerics), model, losses, cache)
        scored = _scored_by(actors, jobs, context, cache, progress)
    for rows, base in scored:
        if tables is not None:
            base_rows = pl.concat([batch.rows for batch in base])
            alternatives = pl.concat([batch.alternatives for batch in rows])
            tables.append(pl.concat([batch.rows for batch in rows]), base_rows, alternatives)


def _scored_shards(
    context: StageContext, model: PeftModel, losses: bool, cache: TeacherCache | None, progress: Progress
) -> Iterator[tuple[list[ScoredRows], list[ScoredRows]]]:
    """Yield each shard's rows under the teacher and, with `losses`, under the base model."""
    numerics, count = context.numerics, N_ALTERNATIVES if losses else 0
    keep = partial(put_states, cache) if cache is not None else lambda scored: None
    for shard in stored_shards(context.input("tokenized_dataset"), numerics):
        rows = list(scored_batches(model, shard, numerics, progress.add, alternatives=count, keep=keep))
        base: list[ScoredRows] = []
        if losses:
            with use_adapter(model, None):
                # The same batches in the same order.
                base = list(scored_batches(model, shard, numerics, progress.add))
        yield rows, base


def _shard_jobs(
    context: StageContext, stored: StoredModel, model: PeftModel, losses: bool, cache: TeacherCache | None
) -> list[tuple[Job, Job | None]]:
    """Return the same work as jobs for other processes: of each shard, under the teacher and under the base model."""
    plan = BatchPlan.of(model, context.numerics)
    teacher = LossMeasure(stored, N_ALTERNATIVES if losses else 0)
    base = LossMeasure(replace(stored, is_active=False))
    jobs: list[tuple[Job, Job | None]] = []
    for batches, examples in stored_batches(context.input("tokenized_dataset"), plan, context.numerics):
        states = None
        if cache is not None:
            states = cache.part(example.example_id for example in examples if example.split == "train")
        jobs.append(
            (Job(batches, teacher, states, plan.workers), Job(batches, base, group=plan.workers) if losses else None)
        )
    return jobs


def _scored_by(
    actors: BatchActors,
    jobs: list[tuple[Job, Job | None]],
    context: StageContext,
    cache: TeacherCache | None,
    progress: Progress,
) -> Iterator[tuple[list[ScoredRows], list[ScoredRows]]]:
    """Yield what `_scored_shards` yields, measured by other processes, which write the states."""
    results = actors.run([job for pair in jobs for job in pair if job is not None], context.numerics, progress.add)
    for teacher, base in jobs:
        rows = next(results)
        if cache is not None and teacher.states is not None:
            cache.note(teacher.states)
        yield rows, next(results) if base is not None else []
