"""The time of a stage on a cluster, by what it waits for.

- compute: FLOPs of the planner over the rate that the GPUs with work reach.
- exchange: weights that sharded layers gather in every pass, and an adapter's gradients, between GPUs.
- memory: weights that generation reads once per token.
- storage: what is read from and written to the store.
- one process: what rank 0 does alone: tokenising, rows of tables, rows of checkpoints.

The first three overlap, so the longest counts; the other two are added, because stages do them between batches.
"""

import math
from dataclasses import dataclass, field

from tokenuq_ml.costs import volumes
from tokenuq_ml.costs.cluster import Cluster
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.layout import Layout
from tokenuq_ml.costs.machine import LINK_EFFICIENCY
from tokenuq_ml.costs.memory import GeneratedEvaluation
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.costs.work import STARTUP_S, Work

OVERLAPPING = ("compute", "exchange", "memory")
GRADIENT_BYTES = 4
"""Adapters are trained in float32."""


@dataclass(frozen=True)
class TrainingSteps:
    """The steps of a training."""

    steps: int
    batch: int
    """Examples per step."""
    passes: float
    """Passes of the weights per micro-batch: forward and backward, a pass that selects, an online teacher's."""
    adapter: int
    """Numbers of the adapter."""
    save_steps: int
    selected_rows: float
    """Rows of `selections` at the end; 0 for a teacher."""
    read: float
    """Bytes of the teacher's cache that are read."""
    precision: str = "bfloat16"


@dataclass(frozen=True)
class StageTime:
    """One stage on a cluster."""

    asset: str
    work: Work
    layout: Layout | None
    """None: the stage needs no GPU."""
    working: int = 0
    """GPUs that have work."""
    precision: str = "bfloat16"
    """Of its products."""
    seconds_by: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        overlapping = max((self.seconds_by.get(name, 0.0) for name in OVERLAPPING), default=0.0)
        return STARTUP_S + overlapping + sum(v for name, v in self.seconds_by.items() if name not in OVERLAPPING)

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        longest = max(self.seconds_by, key=lambda name: self.seconds_by[name], default="")
        return longest if self.seconds_by.get(longest, 0.0) > STARTUP_S else "start"


def weights_bytes(model: Architecture, precision: str) -> float:
    """Return the bytes of a model's weights."""
    return model.parameters * (4.0 if precision == "float32" else 2.0)


def _gather_seconds(cluster: Cluster, model: Architecture, group: int, precision: str) -> float:
    """Return the seconds in which a GPU receives the weights once, of which it holds one part itself."""
    return weights_bytes(model, precision) * (group - 1) / group / cluster.between(group)


def training_time(
    asset: str, work: Work, layout: Layout, steps: TrainingSteps, cluster: Cluster, model: Architecture
) -> StageTime:
    """Return the time of a training.

    A GPU without an example waits, and so does one whose part of a batch is smaller than another's.
    """
    working = min(cluster.size, steps.batch)
    most = math.ceil(steps.batch / working)
    balanced = steps.batch / (working * most)
    passes = steps.steps * math.ceil(most / layout.examples) * steps.passes
    # All-reduce: first within nodes, or groups that span nodes, then each GPU's part of the gradients between these.
    near = max(layout.group, min(cluster.gpus, cluster.size))
    apart = cluster.size / near
    gradients = 2 * GRADIENT_BYTES * steps.adapter
    exchange = passes * _gather_seconds(cluster, model, layout.group, steps.precision)
    exchange += steps.steps * gradients * (near - 1) / near / cluster.between(near)
    exchange += steps.steps * gradients / near * (apart - 1) / apart / cluster.between(cluster.size)
    saves = max(0, (steps.steps - 1) // steps.save_steps)
    rewritten = steps.selected_rows * saves / 2
    written = sum(work.disk.values()) + rewritten * volumes.CHECKPOINT_BYTES_PER_ROW
    written += saves * 3 * GRADIENT_BYTES * steps.adapter
    loaded = cluster.nodes * (weights_bytes(model, steps.precision) + TABLE_BYTES["tokenized_dataset"] * work.tokens)
    rows = work.disk.get("selections", 0.0)
    return StageTime(
        asset,
        work,
        layout,
        working,
        steps.precision,
        {
            "compute": work.flop["train"] / (working * balanced * cluster.rate("train", steps.precision)),
            "exchange": exchange,
            "storage": (steps.read + loaded + written) / cluster.storage_rate,
            "one process": (volumes.writing_seconds("selections", rows) if rows else 0.0)
            + rewritten / volumes.CHECKPOINT_ROWS_PER_SECOND,
        },
    )


def inference_time(
    asset: str,
    work: Work,
    layout: Layout,
    precision: str,
    cluster: Cluster,
    model: Architecture,
    batch_tokens: int,
    generated: tuple[list[GeneratedEvaluation], int] = ([], 1),
) -> StageTime:
    """Return the time of scoring or of an evaluation.

    Args:
        asset: its name.
        work: of the planner.
        layout: of the weights.
        precision: resolved: bfloat16 or float32.
        cluster: where it runs.
        model: the sizes.
        batch_tokens: padded tokens of a batch.
        generated: evaluations that generate answers, and the prompts of a batch.
    """
    batches = max(1.0, work.tokens / batch_tokens)
    working = min(cluster.size, math.ceil(batches))
    answers, size = generated
    # Every token of a batch of answers is a pass of the weights.
    tokens = sum(one.new_tokens * math.ceil(one.prompts / size / cluster.size) for one in answers)
    gather = _gather_seconds(cluster, model, layout.group, precision)
    rates = {kind: working * cluster.rate(kind, precision) for kind in work.flop}
    reading = cluster.nodes * weights_bytes(model, precision) + TABLE_BYTES["tokenized_dataset"] * work.tokens
    return StageTime(
        asset,
        work,
        layout,
        working,
        precision,
        {
            "compute": sum(flop / rates[kind] for kind, flop in work.flop.items()),
            "exchange": (batches / working + tokens) * gather,
            "memory": tokens * weights_bytes(model, precision) / (LINK_EFFICIENCY * cluster.card.memory_rate),
            "storage": (reading + sum(work.disk.values())) / cluster.storage_rate,
            "one process": sum(
                volumes.writing_seconds(name, bytes_) + volumes.keeping_seconds(name, bytes_)
                for name, bytes_ in work.disk.items()
                if name in TABLE_BYTES
            ),
        },
    )


def host_time(asset: str, stage: str, work: Work, cluster: Cluster) -> StageTime:
    """Return the time of a stage that needs no GPU."""
    tokens = work.tokens if stage == "tokenized_dataset" else 0.0
    seconds = {
        "storage": sum(work.disk.values()) / cluster.storage_rate,
        "one process": tokens / volumes.TOKENS_PER_SECOND,
    }
    return StageTime(asset, work, None, seconds_by=seconds)
