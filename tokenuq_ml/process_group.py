"""The processes of one stage, as torchrun starts them: who is first, and what they exchange.

A stage in one process has rank 0 of 1, and every function returns at once. A program that uses `tokenuq_ml` as a
library is one process here too, even under torchrun: only a stage calls `start`, so that scoring in a user's own ranks
stays each rank's own. Training asks accelerate.

The group itself is accelerate's (`PartialState`): it chooses the backend, and the device of each rank.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

LONGEST_WAIT = timedelta(days=7)
"""Time that a rank waits for another: all wait while the first asks a judge. If one dies, torchrun ends the others."""

RANK_VARIABLES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""What torchrun tells a process of its group. Launchers keep them from stages, which are no ranks of theirs."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Group:
    rank: int = 0
    world_size: int = 1
    is_joined: bool = False
    """Whether the ranks can exchange objects."""


_ALONE = _Group()
_group = _ALONE


def launched_rank() -> int:
    """Return the rank that the launcher gave this process, before `start`; 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def launched_processes() -> int:
    """Return how many processes the launcher has started, before `start`; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start() -> None:
    """Make this process a rank of its stage. Does not load torch: the ranks meet at their first exchange, or `join`."""
    global _group
    _group = _Group(launched_rank(), launched_processes())


def join() -> None:
    """Meet the other ranks, and choose this rank's device. Call this before a model is loaded."""
    global _group
    if _group.world_size == 1 or _group.is_joined:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    _group = _Group(_group.rank, _group.world_size, is_joined=True)


def rank() -> int:
    """Return the number of this process, from 0."""
    return _group.rank


def world_size() -> int:
    """Return the number of processes."""
    return _group.world_size


def is_main() -> bool:
    """Return whether this process is the one that reports, writes outputs and deletes."""
    return _group.rank == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is one on its own: for what one rank computes while the others wait for its result."""
    global _group
    outer, _group = _group, _ALONE
    try:
        yield
    finally:
        _group = outer


def barrier() -> None:
    """Wait until every rank has come here."""
    gather_objects([])


def any_rank(flag: bool) -> bool:
    """Return whether the flag is true on any rank; every rank calls this."""
    return any(gather_objects([flag]))


def gather_objects(own: list[T]) -> list[T]:
    """Return the lists of all ranks, joined in the order of ranks; every rank calls this, and gets the same."""
    if _group.world_size == 1:
        return own
    from torch import distributed

    join()
    lists: list[list[T]] = [[] for _ in range(_group.world_size)]
    distributed.all_gather_object(lists, own)
    return [item for items in lists for item in items]


def on_main(function: Callable[[], T]) -> T:
    """Return what the function returns on rank 0, which alone calls it; every rank calls this."""
    if _group.world_size == 1:
        return function()
    from torch import distributed

    join()
    box: list[Any] = [None]
    if is_main():
        with alone():
            box = [function()]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def dealt(items: Iterable[T]) -> Iterator[T]:
    """Yield this rank's share of the items: every `world_size`-th, from its rank."""
    for number, item in enumerate(items):
        if number % _group.world_size == _group.rank:
            yield item


def own_results(function: Callable[[T], R], items: Iterable[T], in_step: bool) -> Iterator[R]:
    """Yield what the function returns for this rank's share of the items, as `dealt` deals them.

    Args:
        function: computes the result of an item.
        items: the same on every rank.
        in_step: all ranks call the function equally often, as passes of a sharded model need. A rank that has no item
            in the last round computes another rank's, without a result.
    """
    if not in_step:
        yield from map(function, dealt(items))
        return
    rest = iter(items)
    while now := list(islice(rest, _group.world_size)):
        is_own = _group.rank < len(now)
        result = function(now[_group.rank if is_own else 0])
        if is_own:
            yield result


def merged(results: Iterable[T]) -> Iterator[T]:
    """Yield the results of all ranks in the order in which `dealt` deals; every rank iterates to the end.

    The ranks exchange one result each at a time, so that none holds more than a round.
    """
    if _group.world_size == 1:
        yield from results
        return
    own = iter(results)
    while True:
        found = gather_objects(_next(own))
        yield from found
        if len(found) < _group.world_size:
            # Every rank that came before has one more item or as many.
            return


def _next(own: Iterator[T]) -> list[T]:
    """Return the next item in a list; an empty list at the end."""
    for item in own:
        return [item]
    return []
