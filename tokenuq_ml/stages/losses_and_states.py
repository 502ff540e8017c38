"""The assets `token_losses` and `teacher_hidden`: one pass of the teacher over the data makes both.

Each has a pass of its own if training and tables have different precisions. Part of the child process
`score_teacher.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.data.batching import TokenizedExample, shards
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.disk_space import in_words, space
from tokenuq_ml.models.adapters import TrainedModel, adapter_digest, use_adapter
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.scoring.batch_threads import BatchPlan, batch_tokens
from tokenuq_ml.scoring.memory import release_free_memory
from tokenuq_ml.scoring.token_losses import N_ALTERNATIVES, ScoredRows, scored_batches
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.adapted_model import AdaptedModel
from tokenuq_ml.stages.batch_actors import BatchActors
from tokenuq_ml.stages.batch_work import Job, StoredBatches, put_states
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.kept_folders import forget_kept, kept_folder
from tokenuq_ml.stages.loss_tables import LossTables
from tokenuq_ml.stages.measures import LossMeasure
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.teacher_states import new_cache, report_cache, states_fit_budget
from tokenuq_ml.tables.kept_parts import Keeper, KeptFrames, KeptParts
from tokenuq_ml.tables.parquet import ROW_GROUP_ROWS, content_of
from tokenuq_ml.training.kept_states import KeptStates
from tokenuq_ml.training.teacher_cache import TeacherCache

LOSSES, STATES = "token_losses", "teacher_hidden"
SHARD_BATCHES = 32
"""Response tokens of a shard, in batches. More take more memory; fewer leave more padding in the shard's last batch."""


def stored_shards(
    dataset: str | Path,
    numerics: Numerics,
    first: int = 0,
    skip: Callable[[list[TokenizedExample]], None] = lambda shard: None,
) -> Iterator[list[TokenizedExample]]:
    """Yield the examples of a `tokenized_dataset` partition shard by shard, and free memory after each shard.

    Args:
        dataset: folder of the partition.
        numerics: decide the size of a shard.
        first: number of the shard to begin with.
        skip: called with each shard before it.
    """
    for number, shard in enumerate(shards(StoredExamples(dataset), _shard_tokens(numerics))):
        if number < first:
            skip(shard)
            continue
        yield shard
        release_free_memory()


def shard_sizes(dataset: str | Path, numerics: Numerics) -> Iterator[int]:
    """Yield the number of response tokens of each shard."""
    for shard in shards(StoredExamples(dataset), _shard_tokens(numerics)):
        yield sum(len(example.positions) for example in shard)


def _shard_tokens(numerics: Numerics) -> int:
    return min(ROW_GROUP_ROWS, SHARD_BATCHES * batch_tokens(numerics))


def stored_batches(
    dataset: str | Path,
    plan: BatchPlan,
    numerics: Numerics,
    first: int = 0,
    skip: Callable[[list[TokenizedExample]], None] = lambda shard: None,
) -> Iterator[tuple[StoredBatches, list[TokenizedExample]]]:
    """Yield the batches of the same shards, for the processes that form them, and the examples of each shard."""
    row = 0

    def skip_rows(shard: list[TokenizedExample]) -> None:
        nonlocal row
        row += len(shard)
        skip(shard)

    for shard in stored_shards(dataset, numerics, first, skip_rows):
        yield StoredBatches(Path(dataset), row, len(shard), plan), shard
        row += len(shard)


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
        _Pass(contexts, teacher, model, tables, cache).run()
    if tables is not None:
        tables.report()
    if cache is not None:
        report_cache(contexts[STATES], model, cache.tokens)
    if process_group.is_main():
        for context in contexts.values():
            forget_kept(context)


class _Shard(NamedTuple):
    """A scored shard."""

    rows: list[ScoredRows]
    base: list[ScoredRows]
    """Under the base model; empty without `token_losses`."""
    cached: list[str]
    """The examples whose states are cached."""


@dataclass(frozen=True)
class _Pass:
    """Scores the dataset shard by shard, for `token_losses` under the base model too; fills the tables and the cache.

    The cache alone takes a pass over all splits too: in bfloat16, other batches give other states of the same teacher.
    """

    contexts: Mapping[str, StageContext]
    teacher: AdaptedModel
    model: TrainedModel
    tables: LossTables | None
    cache: TeacherCache | None

    def run(self) -> None:
        """Score every shard that no earlier run has scored."""
        with Keeper(self._kept(), self.context.reporter.info, self.context.name) as keeper:
            first, progress = keeper.resume(), self._progress()
            for shard in self._scored(first, progress):
                items: list[Any] = []
                if self.tables is not None:
                    frames = self.tables.frames(
                        pl.concat([batch.rows for batch in shard.rows]),
                        pl.concat([batch.rows for batch in shard.base]),
                        pl.concat([batch.alternatives for batch in shard.rows]),
                    )
                    self.tables.append(frames)
                    items.append(frames)
                if self.cache is not None:
                    items.append(shard.cached)
                keeper.put(*items)

    @property
    def context(self) -> StageContext:
        """The context of the pass."""
        return next(iter(self.contexts.values()))

    @property
    def losses(self) -> bool:
        """Whether the base model scores too."""
        return LOSSES in self.contexts

    @property
    def plan(self) -> BatchPlan:
        """How examples become batches."""
        return BatchPlan.of(self.model, self.context.numerics)

    def _kept(self) -> list[KeptParts]:
        """Return where finished shards are kept, of each asset of the pass; on rank 0."""
        if not process_group.is_main():
            return []
        content = {
            "dataset": content_of(self.context.input("tokenized_dataset")),
            "adapter": adapter_digest(self.context.input("adapter")),
        }
        folders = {stage: kept_folder(context, self.plan, **content) for stage, context in self.contexts.items()}
        kept: list[KeptParts] = []
        if self.tables is not None:
            kept.append(KeptFrames(folders[LOSSES], self.tables.append))
        if self.cache is not None:
            needed, free = self.cache.bytes, space(self.context.request.work_dir).free
            if free < 2 * needed:
                self.context.reporter.info(
                    f"{self.context.name}: keeps no finished shards for a run after this one: the states would need "
                    f"{in_words(2 * needed)} while it runs, and {in_words(free)} are free"
                )
                return []
            kept.append(KeptStates(folders[STATES], self.cache))
        return kept

    def _progress(self) -> Progress:
        examples = StoredExamples(self.context.input("tokenized_dataset"))
        return self.context.progress(self._tokens(examples))

    def _tokens(self, examples: Iterable[TokenizedExample]) -> int:
        """Return the tokens of all passes over some examples."""
        return (1 + self.losses) * sum(len(example.input_ids) for example in examples)

    def _scored(self, first: int, progress: Progress) -> Iterator[_Shard]:
        """Yield each shard from number `first`, scored here or by the processes of a cluster."""
        actors = batch_actors.current()
        return self._scored_here(first, progress) if actors is None else self._scored_by(actors, first, progress)

    def _scored_here(self, first: int, progress: Progress) -> Iterator[_Shard]:
        numerics, count = self.context.numerics, N_ALTERNATIVES if self.losses else 0
        keep = partial(put_states, self.cache) if self.cache is not None else lambda scored: None
        dataset = self.context.input("tokenized_dataset")
        for shard in stored_shards(dataset, numerics, first, lambda shard: progress.skip(self._tokens(shard))):
            rows = list(scored_batches(self.model, shard, numerics, progress.add, alternatives=count, keep=keep))
            base: list[ScoredRows] = []
            if self.losses:
                with use_adapter(self.model, None):
                    # The same batches in the same order.
                    base = list(scored_batches(self.model, shard, numerics, progress.add))
            yield _Shard(rows, base, _cached(shard))

    def _scored_by(self, actors: BatchActors, first: int, progress: Progress) -> Iterator[_Shard]:
        """Yield what `_scored_here` yields, measured by other processes, which write the states."""
        jobs = list(self._jobs(first, progress))
        teacher_and_base = [job for teacher, base, _ in jobs for job in (teacher, base) if job is not None]
        results = actors.run(teacher_and_base, self.context.numerics, progress.add)
        for teacher, base, cached in jobs:
            rows = next(results)
            if self.cache is not None and teacher.states is not None:
                self.cache.note(teacher.states)
            yield _Shard(rows, next(results) if base is not None else [], cached)

    def _jobs(self, first: int, progress: Progress) -> Iterator[tuple[Job, Job | None, list[str]]]:
        """Yield the jobs of each shard: under the teacher, and under the base model; and what is cached of it."""
        plan, stored = self.plan, self.teacher.stored(self.context.numerics)
        teacher = LossMeasure(stored, N_ALTERNATIVES if self.losses else 0)
        base = LossMeasure(replace(stored, is_active=False))
        dataset, numerics = self.context.input("tokenized_dataset"), self.context.numerics
        for batches, examples in stored_batches(
            dataset, plan, numerics, first, lambda shard: progress.skip(self._tokens(shard))
        ):
            cached = _cached(examples)
            states = None if self.cache is None else self.cache.part(cached)
            of_base = Job(batches, base, group=plan.workers) if self.losses else None
            yield Job(batches, teacher, states, plan.workers), of_base, cached


def _cached(examples: Iterable[TokenizedExample]) -> list[str]:
    """Return the ids of the examples whose states are cached."""
    return [example.example_id for example in examples if example.split == "train"]
