"""The assets `token_losses` and `teacher_hidden`: one pass of the teacher over the data makes both.

Each has a pass of its own if training and tables have different precisions. Part of the child process
`score_teacher.py`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml import process_group
from tokenuq_ml.data.batching import StoredExamples, TokenizedExample, shards
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens
from tokenuq_ml.scoring.memory import release_free_memory
from tokenuq_ml.scoring.token_losses import ScoredBatch, score_examples, scored_batches
from tokenuq_ml.stages.adapted_model import AdaptedModel
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
        _score(next(iter(contexts.values())), model, LOSSES in contexts, tables, cache)
    if not process_group.is_main():
        return
    if tables is not None:
        tables.report()
    if cache is not None:
        report_cache(contexts[STATES], model, cache.tokens)


def _score(
    context: StageContext, model: PeftModel, losses: bool, tables: LossTables | None, cache: TeacherCache | None
) -> None:
    """Score the dataset shard by shard, with `losses` under the base model too; write each to the tables and the cache.

    The cache alone takes a pass over all splits too: in bfloat16, other batches give other states of the same teacher.
    """
    dataset, numerics = context.input("tokenized_dataset"), context.numerics
    passes = 2 if losses else 1
    progress = context.progress(passes * sum(len(example.input_ids) for example in StoredExamples(dataset)))
    count = N_ALTERNATIVES if losses else 0
    keep = partial(_put_states, cache) if cache is not None else lambda scored: None
    for shard in stored_shards(dataset, numerics):
        rows, alternatives = [], []
        for scored in scored_batches(model, shard, numerics, progress.add, alternatives=count, keep=keep):
            rows.append(scored.rows)
            alternatives.append(scored.alternatives)
        if losses:
            with use_adapter(model, None):
                # The same batches in the same order.
                base = score_examples(model, shard, numerics, progress.add)
        if tables is not None:
            tables.append(pl.concat(rows), base, pl.concat(alternatives))


def _put_states(cache: TeacherCache, scored: ScoredBatch) -> None:
    """Store the hidden states of the batch's train examples."""
    lengths = [len(example.positions) for example in scored.batch.examples]
    for example, hidden_ND in zip(scored.batch.examples, scored.hidden_ND.split(lengths), strict=True):
        if example.split == "train":
            cache.put(example.example_id, hidden_ND)
