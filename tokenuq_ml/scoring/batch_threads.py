"""Run batches of inference: on a CPU one per thread at the same time, on other devices one after another.

If one batch used all threads, they would wait for each other after each of the thousands of small operations of a
forward pass. Batches share nothing but the weights, and the activations of a small batch stay in its core's cache.

In a stage of several processes, complete batches are dealt to the ranks, and every rank gets all results in the order
of the batches: the tables are those of one process. Ranks that share the weights of a model compute in step.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tokenuq_ml import process_group
from tokenuq_ml.data.batching import Batch, TokenizedExample, length_batches
from tokenuq_ml.models.dynamic_rope import shared_length
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.placement import changes_in_forward, shares_outliers
from tokenuq_ml.models.sharding import is_sharded
from tokenuq_ml.scoring.memory import release_free_memory

CPU_TOKENS = 512
"""Padded tokens of a batch on one core: its activations stay in that core's cache."""
DEVICE_TOKENS = 16_384
"""Padded tokens of a batch on an accelerator, which runs one batch at a time."""

RELEASE_BATCHES = 8
"""Batches after which free memory of the workers' heaps is released: batches of changing shapes leave holes there."""

Result = TypeVar("Result")


def batch_tokens(numerics: Numerics) -> int:
    """Return the most padded tokens that a batch of inference should have; a longer text is a batch on its own."""
    return CPU_TOKENS if numerics.device == "cpu" else DEVICE_TOKENS


def num_workers(model: nn.Module, numerics: Numerics) -> int:
    """Return how many batches run at the same time."""
    return numerics.threads if numerics.device == "cpu" and not changes_in_forward(model) else 1


def longest_shared(model: PreTrainedModel | PeftModel) -> int | None:
    """Return the tokens beyond which a text is a batch of its own, so that its scores do not depend on others."""
    return 0 if shares_outliers(model) else shared_length(causal_lm(model))


@dataclass(frozen=True)
class BatchPlan:
    """How examples become batches. Scores depend on it a little, so that every process has to use the same one."""

    max_tokens: int
    """Padded tokens of a batch."""
    workers: int
    """Batches that run at the same time in one process."""
    shared_length: int | None
    """Longer texts are batches of their own."""

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel, numerics: Numerics, max_tokens: int | None = None) -> "BatchPlan":
        """Return the plan for a model on this machine; by default with as many tokens as suit the device."""
        tokens = max_tokens or batch_tokens(numerics)
        return cls(tokens, num_workers(model, numerics), longest_shared(model))

    def batches(self, examples: list[TokenizedExample]) -> Iterator[Batch]:
        """Yield the batches of the examples, the longest first."""
        return length_batches(examples, self.max_tokens, self.workers, self.shared_length)


def map_batches(
    function: Callable[[Batch], Result],
    batches: Iterable[Batch],
    model: nn.Module,
    numerics: Numerics,
    finish: Callable[[Result], Any] = lambda result: result,
    workers: int | None = None,
) -> Iterator[Any]:
    """Yield `finish(function(batch))` for each batch, in the order of the batches, on every rank.

    At most two batches per worker are submitted at a time. After an exception or an interruption, batches that have
    not started are dropped.

    Args:
        function: Takes a batch on the device; must not change the model.
        batches: Moved to the device one by one.
        model: Decides, with `numerics`, how many batches run at the same time.
        numerics: Device and number of threads.
        finish: Called with one result after another, on the rank that has it; what it returns goes to every rank.
        workers: Batches that run at the same time; default: `num_workers`. One batch uses all threads.
    """
    workers = workers or num_workers(model, numerics)
    if is_sharded(model):
        # One batch at a time, in this thread: the ranks gather weights in the order of their passes.
        own = process_group.own_results(_here(function, numerics, workers > 1), batches, in_step=True)
    elif workers == 1:
        own = process_group.own_results(_here(function, numerics), batches, in_step=False)
    else:
        own = _map_here(function, process_group.dealt(batches), workers)
    yield from process_group.merged(finish(result) for result in own)


def _here(
    function: Callable[[Batch], Result], numerics: Numerics, on_one_core: bool = False
) -> Callable[[Batch], Result]:
    """Return the function of a batch that is not on the device yet, with one thread if it shall round as in a pool."""

    def compute(batch: Batch) -> Result:
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if on_one_core else threads)
        try:
            return function(batch.to(numerics.device))
        finally:
            torch.set_num_threads(threads)

    return compute


def _map_here(function: Callable[[Batch], Result], batches: Iterable[Batch], workers: int) -> Iterator[Result]:
    """Yield `function(batch)` for each batch of this rank, `workers` of them at the same time."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches", initializer=_use_one_core)
    submitted: deque[Future] = deque()
    try:
        for number, batch in enumerate(batches, 1):
            if number % RELEASE_BATCHES == 0:
                release_free_memory()
            submitted.append(pool.submit(function, batch))
            if len(submitted) >= 2 * workers:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # A worker's setting is also the default of threads that PyTorch starts later.
        torch.set_num_threads(threads)


def _use_one_core() -> None:
    torch.set_num_threads(1)
    # A setting of each thread; `load_model` says why.
    torch.set_flush_denormal(True)
