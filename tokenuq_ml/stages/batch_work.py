"""What a measuring stage deals to processes of a cluster: batches, with how they are measured (`measures.py`).

All of it can be pickled. A process holds one model, and keeps a pass over it open until it is asked for another one.
Nothing here depends on who computes a batch: masks of MC dropout are keyed by example (`models/keyed_masks.py`).
"""

import pickle
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tokenuq_ml.data.batching import Batch, TokenizedExample, collate
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.numerics import Numerics, resolve_numerics
from tokenuq_ml.out_of_memory import ran_out
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.token_losses import ScoredBatch
from tokenuq_ml.stages.adapted_model import AdaptedModel
from tokenuq_ml.stages.job_files import not_seen
from tokenuq_ml.stages.measures import Measure, Run
from tokenuq_ml.stages.node_files import NodeFiles
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.training.states_writer import CachePart, CapturedWrites, StatesWriter


@dataclass(frozen=True)
class StoredBatches:
    """Batches of some rows of a `tokenized_dataset`, which the process that forms them reads."""

    folder: Path
    first: int
    count: int
    plan: BatchPlan
    done: frozenset[str] = frozenset()
    """Examples whose batches are left out."""

    def __iter__(self) -> Iterator[Batch]:
        examples = list(StoredExamples(self.folder, first=self.first, count=self.count))
        return batches_left(self.plan.batches(examples), self.done)


def batches_left(batches: Iterable[Batch], done: Collection[str]) -> Iterator[Batch]:
    """Yield the batches without those whose examples are done."""
    return (batch for batch in batches if not any(example.example_id in done for example in batch.examples))


@dataclass(frozen=True)
class ExampleBatches:
    """Batches of examples that travel with the work."""

    examples: Sequence[TokenizedExample]
    plan: BatchPlan
    first: int = 0
    """Number of the batch to begin with."""

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.plan.batches(list(self.examples)), self.first, None)


@dataclass(frozen=True)
class SingleBatches:
    """A batch of each example, which travel with the work."""

    examples: Sequence[TokenizedExample]

    def __iter__(self) -> Iterator[Batch]:
        return (collate([example]) for example in self.examples)


@dataclass(frozen=True)
class Job:
    """Batches, how each is measured, and where the states of their examples go."""

    batches: Iterable[Any]
    measure: Measure
    states: CachePart | None = None
    group: int = 1
    """Batches that one process measures at a time: as many as it has threads for."""


@dataclass(frozen=True)
class Setting:
    """What every process must have in common with the one that forms the batches."""

    code: str
    device: str
    threads: int
    files: NodeFiles | None = None
    """Of a store in a bucket: what nodes have to fetch. None: they see the folders of the stage."""

    @classmethod
    def of(cls, numerics: Numerics) -> "Setting":
        """Return the setting of this process."""
        return cls(code_hash(), numerics.device, numerics.threads, NodeFiles.of_this_stage())

    def here(self, measure: Measure) -> Measure:
        """Return a measure with the folders of this node.

        Raises:
            InputError: this node does not see them, and cannot fetch what they hold.
        """
        return measure.with_folders(self._folder)

    def _folder(self, path: str) -> str:
        if self.files is not None:
            return self.files.folder(path)
        if not Path(path).is_dir():
            raise InputError(not_seen(path))
        return path

    def require(self, numerics: Numerics) -> None:
        """Check that this process is like the one that forms the batches.

        Raises:
            InputError: it has other code, or another kind of device.
        """
        if code_hash() != self.code:
            raise InputError(
                f"the code of tokenuq_ml on a node, {Path(__file__).parents[1]} ({code_hash()}), is not that of the "
                f"stage ({self.code}): install the same version on all nodes, or name a "
                "checkout in TOKENUQ_RAY_WORKING_DIR"
            )
        if numerics.device.split(":")[0] != self.device.split(":")[0]:
            raise InputError(
                f"the stage computes on {self.device} and a process of it on {numerics.device}; reserve the same "
                "kind of device for all of them by `resources` of the study"
            )


def groups(job: Job, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the work of a job: complete batches, as many as one process measures at a time, and which are the last."""
    batches = iter(job.batches)
    now = list(islice(batches, job.group))
    while True:
        later = list(islice(batches, job.group))
        yield {"is_last": not later, "work": pickle.dumps((replace(job, batches=now), setting))}
        if not later:
            return
        now = later


class Measurer:
    """Measures work with the model that it holds. One per process."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._model: AdaptedModel | None = None
        self._measure: Measure | None = None
        self._writer: StatesWriter | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of `groups`, with its results in place of its work, or with the reason why there are none."""
        results = failure = b""
        self._captured = CapturedWrites()
        try:
            results = pickle.dumps(self._results(*pickle.loads(row["work"])))
        except Exception as error:
            failure = pickle.dumps(Failure.of(error))
        states = pickle.dumps(self._captured.pieces)
        return {"is_last": row["is_last"], "results": results, "states": states, "failure": failure}

    def _results(self, job: Job, setting: Setting) -> list[tuple[Any, int]]:
        """Return the result and the units of each batch."""
        if job.measure != self._measure:
            self._switch(job.measure, setting)
        if job.states is None:
            return self._run(job.batches)
        try:
            if setting.files is not None and not job.states.path.exists():
                # Another node has the file; the states travel with the results.
                self._writer = job.states.captured_by(self._captured, self._head)
                return self._run(job.batches)
            with job.states.writer(self._head) as self._writer:
                return self._run(job.batches)
        finally:
            self._writer = None

    def close(self) -> None:
        """Give the model back as it was."""
        self._open.close()
        self._measure = None

    def _switch(self, measure: Measure, setting: Setting) -> None:
        """Close the pass over the model, and open another one, with another model if it needs one."""
        self.close()
        measure_here = setting.here(measure)
        stored = measure_here.model
        if self._model is None or not self._model.become(stored):
            # Frees the one before.
            self._model = None
            self._model = AdaptedModel(stored.base, stored.adapter, stored.name, settings=stored.settings)
            self._model.become(stored)
        # The batches of one thread each, and the products of a batch on its own, are then those of the stage.
        torch.set_num_threads(setting.threads)
        setting.require(resolve_numerics(stored.precision))
        model, numerics = self._model.at(stored.precision)
        self._head = head_of(model)
        self._run: Run = self._open.enter_context(measure_here.open(model, numerics, self._keep))
        self._measure = measure

    def _keep(self, scored: ScoredBatch) -> None:
        if self._writer is not None:
            put_states(self._writer, scored)


def put_states(cache: StatesWriter, scored: ScoredBatch) -> None:
    """Store the hidden states of a batch's train examples."""
    lengths = [len(example.positions) for example in scored.batch.examples]
    for example, hidden_ND in zip(scored.batch.examples, scored.hidden_ND.split(lengths), strict=True):
        if example.split == "train":
            cache.put(example.example_id, hidden_ND)


@dataclass(frozen=True)
class Failure:
    """Why a process could not measure a batch. Many exceptions cannot be pickled."""

    kind: str
    """`input`, `memory`, `system` or `bug`."""
    message: str
    arguments: tuple = field(default=())

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Return what is known of an exception."""
        if isinstance(error, InputError):
            return cls("input", str(error))
        if ran_out(error):
            return cls("memory", str(error))
        if isinstance(error, OSError) and error.errno is not None:
            return cls("system", str(error), (error.errno, error.strerror, error.filename))
        return cls("bug", "".join(traceback.format_exception(error)))

    def exception(self) -> Exception:
        """Return an exception that ends the stage as the original one would."""
        if self.kind == "input":
            return InputError(self.message)
        if self.kind == "memory":
            return MemoryError(self.message)
        if self.kind == "system":
            return OSError(*self.arguments)
        return RuntimeError(f"a process that measures batches has failed:\n{self.message}")
