"""How batches are measured: with which model, and what of them.

Can be pickled: a stage deals its batches to processes of a cluster with it (`batch_work.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import polars as pl

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import Batch
from tokenuq_ml.evaluation.generation import GreedyDecoding, answer_pass
from tokenuq_ml.models.adapters import TrainedModel
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.bald_reference import reference_pass
from tokenuq_ml.scoring.mc_dropout import uncertainty_pass
from tokenuq_ml.scoring.teacher_change import batch_changes
from tokenuq_ml.scoring.token_losses import ScoredBatch, loss_pass
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.stages.adapted_model import StoredModel

Keep = Callable[[ScoredBatch], None]
Run = Callable[[Iterable[Any]], list[tuple[Any, int]]]
"""Takes batches, and returns for each its result and the units of progress that it counts."""


@dataclass(frozen=True)
class Measure(ABC):
    """How batches are measured: with which model, and what of them."""

    model: StoredModel

    def with_folders(self, place: Callable[[str], str]) -> Self:
        """Return the same measure, which reads `place(folder)` in place of each folder that it reads."""
        model = replace(self.model, base=place(self.model.base), adapter=place(self.model.adapter))
        return replace(self, model=model)

    @abstractmethod
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> AbstractContextManager[Run]:
        """Prepare the model, and yield what measures batches.

        Args:
            model: with its adapter.
            numerics: of the model.
            keep: called with each batch that is scored, hidden states included.
        """


@dataclass(frozen=True)
class LossMeasure(Measure):
    """Losses, entropies and ranks; results are `ScoredRows`, and units are tokens."""

    model: StoredModel
    alternatives: int = 0
    truth: str | None = None
    """Folder of the table `token_truth`, for the divergence from it; every process reads it."""

    def with_folders(self, place: Callable[[str], str]) -> Self:
        """Return the same measure in other folders; the truth too is one."""
        return replace(super().with_folders(place), truth=None if self.truth is None else place(self.truth))

    @contextmanager
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> Iterator[Run]:
        """Yield what scores batches."""
        truth = None if self.truth is None else TokenTruth.read(self.truth)
        with self.model.activated(model), loss_pass(model, numerics, self.alternatives, keep, truth) as score:
            yield lambda batches: [(scored, scored.tokens) for scored in score(batches)]


@dataclass(frozen=True)
class ChangeMeasure(Measure):
    """Divergence of the teacher from the base model; results are rows of `teacher_change`, units its tokens twice."""

    model: StoredModel

    @contextmanager
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> Iterator[Run]:
        """Yield what compares batches."""

        def run(batches: Iterable[Batch]) -> list[tuple[pl.DataFrame, int]]:
            ready = list(batches)
            tokens = [2 * sum(len(example.input_ids) for example in batch.examples) for batch in ready]
            return list(zip(batch_changes(model, ready, numerics), tokens, strict=True))

        with self.model.activated(model):
            yield run


@dataclass(frozen=True)
class UncertaintyMeasure(Measure):
    """BALD from K dropout samples; results are rows of `token_uncertainty`, and units are tokens times K."""

    model: StoredModel
    spec: UncertaintySpec

    @contextmanager
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> Iterator[Run]:
        """Yield what samples batches, in float32."""
        with self.model.activated(model), float32_passes(model) as dtype:
            with uncertainty_pass(model, self.spec, replace(numerics, dtype=dtype)) as score:
                yield lambda batches: list(score(batches))


@dataclass(frozen=True)
class ReferenceMeasure(Measure):
    """BALD in float64; results are rows of `token_uncertainty`, and units are tokens times K."""

    model: StoredModel
    spec: UncertaintySpec

    @contextmanager
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> Iterator[Run]:
        """Yield what samples batches, each with all threads."""
        with self.model.activated(model), reference_pass(model, self.spec) as score:
            yield lambda batches: list(score(batches))


@dataclass(frozen=True)
class AnswerMeasure(Measure):
    """Greedy answers to batches of prompts; results are the new ids by prompt, and units are prompts."""

    model: StoredModel
    decoding: GreedyDecoding

    @contextmanager
    def open(self, model: TrainedModel, numerics: Numerics, keep: Keep) -> Iterator[Run]:
        """Yield what answers prompts."""
        tokenizer = load_tokenizer(self.model.base)
        with self.model.activated(model), answer_pass(model, tokenizer, self.decoding) as answer:
            yield lambda batches: [(answer(batch), len(batch)) for batch in batches]
