"""How a model's weights are spread over the GPUs of a cluster, and how many examples a GPU holds at once.

Every GPU has its own examples (data parallel) and the complete adapter. The weights of the base model are copied, or
sharded over a group of GPUs (FSDP's hybrid sharding): they are gathered layer by layer in every pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenuq_ml.costs.cluster import Cluster
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.machine import USABLE_MEMORY
from tokenuq_ml.costs.memory import PeakMemory

SHARDED = "weights"
"""The part of `PeakMemory` that is sharded."""
ON_HOST = "process"
GATHERED_LAYERS = 2
"""Layers whose weights are complete at once: the one that computes, and the one that is gathered meanwhile."""


@dataclass(frozen=True)
class Layout:
    """What each GPU holds."""

    group: int
    """GPUs that share one copy of the weights."""
    examples: int
    """Examples per forward pass of a training; 0 in inference, whose batches have a number of tokens."""
    memory: dict[str, float]
    """Peak bytes on each GPU, by part."""


def inference_layout(cluster: Cluster, model: Architecture, memory: dict[str, float], itemsize: int) -> Layout | None:
    """Return the smallest group whose cards hold what a stage needs; None if no group does."""
    for group in _groups(cluster):
        held = _on_each(memory, group, model, itemsize)
        if _fits(held, cluster):
            return Layout(group, 0, held)
    return None


def training_layouts(cluster: Cluster, model: Architecture, peak: PeakMemory, rank: int) -> Iterator[Layout]:
    """Yield a layout for each group: with the most examples per pass that its cards hold.

    The study's `micro_batch_size` is an upper limit, and so is a GPU's part of the batch.
    """
    train = peak.study.train
    most = -(-train.batch_size // min(cluster.size, train.batch_size))
    most = min(most, train.micro_batch_size or most)
    for group in _groups(cluster):
        for examples in sorted((n for n in range(1, most + 1) if train.batch_size % n == 0), reverse=True):
            memory = with_examples(peak, examples).training(rank)
            held = _on_each(memory, group, model, peak.machine.itemsize)
            if _fits(held, cluster):
                yield Layout(group, examples, held)
                break


def with_examples(peak: PeakMemory, examples: int) -> PeakMemory:
    """Return the memory of a study whose forward passes have that many examples."""
    train = peak.study.train.model_copy(update={"micro_batch_size": examples})
    return PeakMemory(peak.model, peak.study.model_copy(update={"train": train}), peak.machine)


def _groups(cluster: Cluster) -> list[int]:
    """Return divisors of a node's GPUs, then whole nodes: 1, 2, 4, 8, 16, ..."""
    inside = [n for n in range(1, cluster.gpus + 1) if cluster.gpus % n == 0]
    return inside + [n * cluster.gpus for n in range(2, cluster.nodes + 1) if cluster.nodes % n == 0]


def _on_each(memory: dict[str, float], group: int, model: Architecture, itemsize: int) -> dict[str, float]:
    held = {part: size / (group if part == SHARDED else 1) for part, size in memory.items() if part != ON_HOST}
    if group > 1:
        layer = sum(i * o for i, o in model.matrices)
        held["gathered weights"] = itemsize * (GATHERED_LAYERS * layer + model.hidden * model.vocabulary)
    return held


def _fits(held: dict[str, float], cluster: Cluster) -> bool:
    return sum(held.values()) <= USABLE_MEMORY * cluster.card.memory
