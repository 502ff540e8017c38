"""Batches of inference that run side by side: on a CPU one a thread, elsewhere one after another.

One batch on all threads makes them wait for each other at the end of each of a forward pass's
thousands of small operations; batches share nothing but the weights, and a small batch's
activations stay in its core's cache. Knows nothing of what is computed of a batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

from tokenuq_ml.data.batching import Batch
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.memory import release_free_memory

CPU_TOKENS = 512
"""Padded tokens of a batch on one core: its activations stay in that core's cache."""
DEVICE_TOKENS = 16_384
"""Padded tokens of a batch that has a whole device to itself."""

RELEASE_BATCHES = 8
"""Batches after which the workers' heaps give back what is free: batches of ever new shapes leave holes in them."""

Result = TypeVar("Result")


def batch_tokens(numerics: Numerics) -> int:
    """The most padded tokens that a batch of inference should have; a longer text is a batch of its own."""
    return CPU_TOKENS if numerics.device == "cpu" else DEVICE_TOKENS


def num_workers(model: nn.Module, numerics: Numerics) -> int:
    """How many batches run at a time."""
    return numerics.threads if numerics.device == "cpu" and not _moves_in_forward(model) else 1


def map_batches(
    function: Callable[[Batch], Result], batches: Iterable[Batch], model: nn.Module, numerics: Numerics
) -> Iterator[Result]:
    """`function(batch)` of each batch on the device, in the order of the batches.

    `function` must leave the model as it is. Not more than two batches a thread are under way at a time. An
    exception, and an interruption, ends all after the batches that have begun.
    """
    at_once = num_workers(model, numerics)
    if at_once == 1:
        for batch in batches:
            yield function(batch.to(numerics.device))
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="batches", initializer=_use_one_core)
    under_way: deque = deque()
    try:
        for number, batch in enumerate(batches, 1):
            if number % RELEASE_BATCHES == 0:
                release_free_memory()
            under_way.append(pool.submit(function, batch))
            if len(under_way) >= 2 * at_once:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # What a worker sets is also what threads begin with that PyTorch starts later.
        torch.set_num_threads(threads)


def _use_one_core() -> None:
    torch.set_num_threads(1)
    # A thread's own flag; `models.load_model` says why.
    torch.set_flush_denormal(True)


def _moves_in_forward(model: nn.Module) -> bool:
    """Whether a forward pass alters the model: rotary frequencies that follow the length of the input do."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]
        if any("dynamic" in str(one) or one == "longrope" for one in kinds):
            return True
    return False
