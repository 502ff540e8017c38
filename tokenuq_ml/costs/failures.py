"""Work that failures of nodes cost, by closed forms and by simulation: shards that are scored again, and checkpoints.

Failures come at random with a constant rate (exponential times between them), also while lost work is restarted.
Formulas: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22 (2006), section 3; J. W. Young, "A first order approximation to the optimum checkpoint interval",
CACM 17 (1974). Times are in any one unit.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from random import Random

LOST_LIMIT = 0.01
"""The share of work that may be lost: docs/scale.md promises less."""


@dataclass
class Outcome:
    """What a run with failures took, in the unit of its times, summed over workers."""

    useful: float = 0.0
    lost: float = 0.0
    """Work that was under way at a failure, and was done again."""
    saving: float = 0.0
    """Writing of checkpoints, of intervals that were completed."""
    restarting: float = 0.0
    """Waiting until lost work was continued."""
    failures: int = 0
    elapsed: float = 0.0
    """Wall-clock time until the last result."""

    @property
    def lost_share(self) -> float:
        """Lost work per useful work."""
        return self.lost / self.useful


def lost_share(unit: float, mtbf: float, saving: float = 0.0) -> float:
    """Return the expected lost work per useful work.

    A unit of work that takes `u` in all and starts again at each failure takes `(e^(u/M) - 1) M` on average.

    Args:
        unit: work after which nothing of it can be lost: a shard, an interval between checkpoints, or a whole stage.
        mtbf: M, mean time between failures of what works on it.
        saving: time to write the checkpoint, which is lost with the work.
    """
    length = unit + saving
    if length / mtbf > 500:
        return math.inf
    return (mtbf * math.expm1(length / mtbf) - length) / unit


def elapsed(work: float, unit: float, mtbf: float, saving: float = 0.0, restart: float = 0.0) -> float:
    """Return the expected wall-clock time of `work`, in units of `unit`: Daly's `M e^(R/M) (e^((u+d)/M) - 1) W/u`."""
    if (unit + saving) / mtbf > 500:
        return math.inf
    return mtbf * math.exp(restart / mtbf) * math.expm1((unit + saving) / mtbf) * work / unit


def best_interval(saving: float, mtbf: float) -> float:
    """Return Young's interval between checkpoints, `sqrt(2 d M)`, at which saving and lost work together are least."""
    return math.sqrt(2 * saving * mtbf)


def longest_interval(mtbf: float, limit: float = LOST_LIMIT, saving: float = 0.0) -> float:
    """Return the longest unit of work whose lost share stays within `limit`; 0 if none does.

    Units shorter than `saving` lose more: they are mostly saved.
    """
    low, high = saving, saving + 4 * limit * mtbf
    if saving and lost_share(low, mtbf, saving) > limit:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lost_share(middle, mtbf, saving) <= limit else (low, middle)
    return low


def simulate_checkpoints(
    intervals: int, unit: float, mtbf: float, saving: float = 0.0, restart: float = 0.0, seed: int = 0
) -> Outcome:
    """Simulate one program that all nodes work on, and that continues from its last checkpoint after a failure."""
    draw, outcome = Random(seed), Outcome(useful=intervals * unit, saving=intervals * saving)
    now, failure, length = 0.0, draw.expovariate(1 / mtbf), unit + saving
    for _ in range(intervals):
        while failure < now + length:
            outcome.lost += failure - now
            outcome.failures += 1
            now, failure = failure, failure + draw.expovariate(1 / mtbf)
            up = now + restart
            while failure < up:
                outcome.failures += 1
                up, failure = failure + restart, failure + draw.expovariate(1 / mtbf)
            outcome.restarting += up - now
            now = up
        now += length
    outcome.elapsed = now
    return outcome


@dataclass
class _Node:
    """A node of `simulate_shards`."""

    life: int = 0
    """Grows with each failure: what an earlier life has scheduled is void."""
    running: dict[int, float] = field(default_factory=dict)
    """Worker -> start of its shard."""


def simulate_shards(
    shards: int, unit: float, nodes: int, workers: int, mtbf: float, restart: float = 0.0, seed: int = 0
) -> Outcome:
    """Simulate a queue of shards: a failure of a node loses what its workers have under way, and nothing else.

    Args:
        shards: how many.
        unit: time of a shard.
        nodes: nodes that work.
        workers: shards that a node works on at once.
        mtbf: mean time between failures of one node.
        restart: time until the node, or another one for it, works again.
        seed: of the failures.
    """
    draw, outcome = Random(seed), Outcome(useful=shards * unit)
    queue, done, waiting = shards, 0, deque[tuple[int, int]]()
    state = [_Node() for _ in range(nodes)]
    # (time, order, node, worker, life): a worker's shard is complete, or with worker -1 the node fails, -2 it is back.
    events: list[tuple[float, int, int, int, int]] = []
    order = 0

    def schedule(time: float, node: int, worker: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, node, worker, state[node].life))

    def start(node: int, worker: int, now: float) -> None:
        nonlocal queue
        if not queue:
            waiting.append((node, worker))
            return
        queue -= 1
        state[node].running[worker] = now
        schedule(now + unit, node, worker)

    for node in range(nodes):
        schedule(draw.expovariate(1 / mtbf), node, -1)
        for worker in range(workers):
            start(node, worker, 0.0)
    while done < shards:
        now, _, node, worker, life = heapq.heappop(events)
        if life != state[node].life:
            continue
        if worker >= 0:
            done += 1
            del state[node].running[worker]
            outcome.elapsed = now
            start(node, worker, now)
        elif worker == -1:
            outcome.failures += 1
            outcome.lost += sum(now - started for started in state[node].running.values())
            queue += len(state[node].running)
            state[node] = _Node(life + 1)
            waiting = deque(one for one in waiting if one[0] != node)
            schedule(now + restart, node, -2)
            outcome.restarting += workers * restart
            while queue and waiting:
                start(*waiting.popleft(), now)
        else:
            schedule(now + draw.expovariate(1 / mtbf), node, -1)
            for each in range(workers):
                start(node, each, now)
    return outcome
