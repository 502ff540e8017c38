"""A study on a cluster: the time of each stage, totals and volumes. `cluster_failures.py` says what failures cost.

Extends the planner: its work per stage (FLOPs, bytes, memory) is spread over GPUs (`layout.py`) and timed by what a
stage waits for (`cluster_stage.py`). One stage at a time has the whole cluster. Nothing is measured or started.
"""

import copy
import math
from collections.abc import Sequence

from tokenuq_ml.costs import volumes
from tokenuq_ml.costs.ablation_step import ablation_step
from tokenuq_ml.costs.budgets import budget_of, epochs_of, rank_of, steps_of
from tokenuq_ml.costs.cluster import Cluster
from tokenuq_ml.costs.cluster_stage import (
    StageTime,
    TrainingSteps,
    host_time,
    inference_time,
    training_time,
)
from tokenuq_ml.costs.generated import largest_batch
from tokenuq_ml.costs.layout import inference_layout, training_layouts, with_examples
from tokenuq_ml.costs.passes import response_tokens, total_tokens
from tokenuq_ml.costs.planner import Planner
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.costs.training_state import trained_numbers
from tokenuq_ml.costs.volumes import TableVolume, table_volume
from tokenuq_ml.errors import InputError

TRAININGS = ("candidate_teacher", "baseline_teacher", "ensemble_teacher", "student")
HOST_STAGES = ("models", "datasets", "tokenized_dataset", "uncertainty_analysis", "ablation_report")


class ClusterPlan:
    """The plan of a study on a cluster.

    Args:
        planner: of the study, for a machine of `cluster.machine`.
        cluster: where it runs.
        assets: (asset, stage, and what the stage is of: an ablation, a model or a dataset), in order.

    Raises:
        InputError: the model's sizes are not known, or no layout fits the cards.
    """

    def __init__(self, planner: Planner, cluster: Cluster, assets: Sequence[tuple[str, str, str]]):
        if planner.architecture is None:
            raise InputError(
                f"{planner.study.model}: its sizes are not known; give its entry in models.yaml `config:`, or name a "
                "config.json with --model"
            )
        self.cluster, self.model = cluster, planner.architecture
        self.planner = self._with_layout(planner)
        self.stages = [self._stage(asset) for asset in assets]

    @property
    def seconds(self) -> float:
        """Wall-clock time of all stages, without failures."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours, idle GPUs included."""
        return self.seconds / 3600 * self.cluster.size

    @property
    def disk(self) -> float:
        """Bytes that stay in the store."""
        return sum(sum(stage.work.disk.values()) for stage in self.stages)

    @property
    def bottleneck(self) -> tuple[StageTime, str]:
        """The stage that takes longest, and what it waits for."""
        longest = max(self.stages, key=lambda stage: stage.seconds)
        return longest, longest.bottleneck

    @property
    def steps(self) -> int:
        """Optimiser steps of a training."""
        return steps_of(self.planner.study.train, self.planner.train_data.rows)

    @property
    def tables(self) -> list[TableVolume]:
        """The largest partition of each table whose rows are response tokens."""
        found: dict[str, TableVolume] = {}
        for stage in self.stages:
            for name, size in stage.work.disk.items():
                if name in volumes.ROWS_PER_SECOND and (name not in found or found[name].size < size):
                    found[name] = table_volume(name, size)
        return list(found.values())

    @property
    def shard_tokens(self) -> int:
        """Response tokens of a shard of scoring."""
        return volumes.shard_tokens(self.planner.machine.batch_tokens)

    @property
    def shards(self) -> int:
        """Shards of a pass over the data."""
        return math.ceil(response_tokens(self.planner.data) / self.shard_tokens)

    @property
    def shard_batches(self) -> int:
        """Batches of a shard."""
        data = self.planner.data
        per_response = total_tokens(data) / max(response_tokens(data), 1.0)
        return math.ceil(self.shard_tokens * per_response / self.planner.machine.batch_tokens)

    @property
    def examples_memory(self) -> float:
        """Bytes of host memory that each process of a training holds of the data."""
        return volumes.examples_memory(self.planner.train_data.rows, total_tokens([self.planner.train_data]))

    @property
    def teacher_cache(self) -> dict[str, float]:
        """The cache's bytes if there were one, the seconds to read it once, and those of an online teacher's pass."""
        sizes, data = self.model.cache_bytes(), [self.planner.train_data]
        form = "hidden_states" if self.planner.only_states else "mean_embeddings"
        flop = 2 * total_tokens(data) * self.model.layers * sum(i * o for i, o in self.model.matrices)
        both = sizes["hidden_states"] + (0 if self.planner.only_states else sizes["mean_embeddings"])
        return {
            "bytes": both * response_tokens(data),
            "read": sizes[form] * response_tokens(data),
            "read_seconds": sizes[form] * response_tokens(data) / self.cluster.storage_rate,
            "online_seconds": flop / (self.cluster.size * self.cluster.rate("train", self.planner.machine.precision)),
        }

    def not_in_code(self) -> list[str]:
        """Return what the plan needs that stages cannot do yet."""
        measuring = {one.layout.group for one in self.stages if one.layout and not one.layout.examples}
        return [
            f"{what} with weights shared by {' or '.join(map(str, sorted(shared)))} GPUs: `sharding: fsdp` shares them "
            "among all processes of a stage"
            for what, groups in (("trainings", {self.layout.group}), ("measuring", measuring))
            if (shared := groups - {1, self.cluster.size})
        ]

    # What the stages share.

    def _with_layout(self, planner: Planner) -> Planner:
        """Return the planner with the examples per forward pass at which the study's trainings are fastest."""
        rank, tried = planner.study.train.lora.rank, []
        # Where the teacher is taken from candidates, it is no training.
        teacher = next(
            (("candidate_teacher", row) for row in planner.study.teacher_candidates), ("baseline_teacher", "")
        )
        for layout in training_layouts(self.cluster, self.model, planner.memory, rank):
            made = copy.copy(planner)
            made.memory = with_examples(planner.memory, layout.examples)
            made.study, self.planner, self.layout = made.memory.study, made, layout
            tried.append((self._training("", *teacher).seconds, layout.group, made, layout))
        if not tried:
            raise InputError(
                f"one example of {planner.study.max_length:,} tokens does not fit the memory of a "
                f"{self.cluster.card.name}, however the weights are sharded; lower max_length, or name more nodes or "
                "cards with more memory"
            )
        _, _, made, self.layout = min(tried, key=lambda one: one[:2])
        return made

    def _stage(self, asset: tuple[str, str, str]) -> StageTime:
        name, stage, of = asset
        work = self.planner.work(stage, of)
        if stage in TRAININGS and work.flop:
            return self._training(name, stage, of)
        if stage in HOST_STAGES or not work.flop:
            return host_time(name, stage, work, self.cluster)
        precision = self.planner.machine.in_precision(work.precision).precision
        layout = inference_layout(self.cluster, self.model, work.memory, 4 if precision == "float32" else 2)
        if layout is None:
            raise InputError(f"{name}: does not fit the memory of {self.cluster.size} {self.cluster.card.name}")
        answers = self.planner.generated_evaluations if stage in ("evaluation", "reference_evaluation") else []
        size = largest_batch(self.planner.study, default=1)
        batch = self.planner.machine.batch_tokens
        return inference_time(name, work, layout, precision, self.cluster, self.model, batch, (answers, size))

    def _training(self, name: str, stage: str, of: str) -> StageTime:
        planner = self.planner
        ablation = planner.config.ablations[of] if stage == "student" else None
        train, rows = budget_of(planner.study, stage, ablation, of), planner.train_data.rows
        cached = planner.online_reason is None
        step = ablation_step(ablation, train, cached, planner.only_states) if ablation else {}
        teacher = step.get("teacher", "none")
        rank = rank_of(planner.study, ablation) if ablation else train.lora.rank
        per_token = 0 if teacher in ("none", "online") else self.model.cache_bytes()[teacher]
        seen = epochs_of(train, rows, ablation) * response_tokens([planner.train_data])
        work = planner.work(stage, of)
        steps = TrainingSteps(
            steps_of(train, rows, ablation),
            train.batch_size,
            2 + step.get("selection_passes", 0) + (teacher == "online"),
            trained_numbers(self.model, train, rank),
            train.save_steps,
            work.disk.get("selections", 0.0) / TABLE_BYTES["selections"],
            per_token * seen,
            planner.machine.precision,
        )
        return training_time(name, work, self.layout, steps, self.cluster, self.model)
