"""A study on a cluster: the time of each stage, totals, volumes and what failures cost.

Extends the planner: its work per stage (FLOPs, bytes, memory) is spread over GPUs (`layout.py`) and timed by what a
stage waits for (`cluster_stage.py`). One stage at a time has the whole cluster. Nothing is measured or started.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokenuq_ml.costs import failures, volumes
from tokenuq_ml.costs.ablation_step import ablation_step
from tokenuq_ml.costs.cluster import Cluster
from tokenuq_ml.costs.cluster_stage import StageTime, TrainingSteps, host_time, inference_time, training_time
from tokenuq_ml.costs.layout import inference_layout, training_layouts, with_examples
from tokenuq_ml.costs.passes import response_tokens, total_tokens
from tokenuq_ml.costs.planner import TABLE_BYTES, Planner
from tokenuq_ml.costs.volumes import TableVolume, table_volume
from tokenuq_ml.errors import InputError

TRAININGS = ("baseline_teacher", "student")
HOST_STAGES = ("models", "datasets", "tokenized_dataset", "uncertainty_analysis", "ablation_report")
SIMULATED_SHARDS = 10_000
SIMULATED_RUNS = 5
"""Simulations with other seeds, whose mean is shown."""


@dataclass(frozen=True)
class FailureCost:
    """What failures cost a kind of work."""

    what: str
    unit: float
    """Seconds of work after which nothing of it can be lost."""
    mtbf: float
    """Seconds between failures of what works on it."""
    saving: float
    closed: float
    """Lost work per useful work, by the closed form."""
    simulated: float
    """The same, in simulations of 10,000 units."""
    from_start: float
    """The same if a failure of any node started the whole stage again, as under torchrun."""
    of_writer: float | None
    """The same for failures of one node only: the one whose process forms batches and writes the table."""


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
        train = self.planner.study.train
        return math.ceil(self.planner.train_data.rows / train.batch_size) * train.epochs

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
        form = "hidden_states" if self.planner.softcapped else "mean_embeddings"
        flop = 2 * total_tokens(data) * self.model.layers * sum(i * o for i, o in self.model.matrices)
        both = sizes["hidden_states"] + (0 if self.planner.softcapped else sizes["mean_embeddings"])
        return {
            "bytes": both * response_tokens(data),
            "read": sizes[form] * response_tokens(data),
            "read_seconds": sizes[form] * response_tokens(data) / self.cluster.storage_rate,
            "online_seconds": flop / (self.cluster.size * self.cluster.rate("train", self.planner.machine.precision)),
        }

    def failure_costs(self) -> list[FailureCost]:
        """Return what failures cost in scoring, BALD and the longest training."""
        by_stage = {stage.asset.rpartition("/")[2]: stage for stage in self.stages}
        costs = [self._shard_cost(by_stage[name]) for name in ("token_losses", "token_uncertainty") if name in by_stage]
        return [*costs, self._checkpoint_cost(self._longest_training)]

    # What the stages share.

    def _with_layout(self, planner: Planner) -> Planner:
        """Return the planner with the examples per forward pass at which the study's trainings are fastest."""
        rank, tried = planner.study.train.lora.rank, []
        for layout in training_layouts(self.cluster, self.model, planner.memory, rank):
            made = copy.copy(planner)
            made.memory = with_examples(planner.memory, layout.examples)
            made.study, self.planner, self.layout = made.memory.study, made, layout
            tried.append((self._training("", "baseline_teacher", "").seconds, layout.group, made, layout))
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
        if stage in TRAININGS:
            return self._training(name, stage, of)
        work = self.planner.work(stage, of)
        if stage in HOST_STAGES or not work.flop:
            return host_time(name, stage, work, self.cluster)
        precision = self.planner.machine.in_precision(work.precision).precision
        layout = inference_layout(self.cluster, self.model, work.memory, 4 if precision == "float32" else 2)
        if layout is None:
            raise InputError(f"{name}: does not fit the memory of {self.cluster.size} {self.cluster.card.name}")
        answers = self.planner.generated_evaluations if stage in ("evaluation", "reference_evaluation") else []
        spec = self.planner.study.evaluation
        size = max((one.batch_size for one in (spec.ifeval, spec.gsm8k, spec.alpaca_eval) if one), default=1)
        batch = self.planner.machine.batch_tokens
        return inference_time(name, work, layout, precision, self.cluster, self.model, batch, (answers, size))

    def _training(self, name: str, stage: str, of: str) -> StageTime:
        planner, train = self.planner, self.planner.study.train
        ablation = planner.config.ablations[of] if of else None
        cached = planner.online_reason is None
        step = ablation_step(ablation, train, cached, planner.softcapped) if ablation else {}
        teacher, rank = step.get("teacher", "none"), (ablation.lora.of(train.lora) if ablation else train.lora).rank
        per_token = 0 if teacher in ("none", "online") else self.model.cache_bytes()[teacher]
        seen = train.epochs * response_tokens([planner.train_data])
        work = planner.work(stage, of)
        steps = TrainingSteps(
            self.steps,
            train.batch_size,
            2 + step.get("selection_passes", 0) + (teacher == "online"),
            self.model.adapter_parameters(rank),
            train.save_steps,
            work.disk.get("selections", 0.0) / TABLE_BYTES["selections"],
            per_token * seen,
            planner.machine.precision,
        )
        return training_time(name, work, self.layout, steps, self.cluster, self.model)

    def _shard_cost(self, stage: StageTime) -> FailureCost:
        """Return what it costs that a group scores a shard, which a failure of one of its nodes loses."""
        cluster, group = self.cluster, max(1, stage.layout.group)
        groups = max(1, stage.working // group)
        unit = max(stage.seconds_by["compute"], stage.seconds_by["exchange"]) * groups / self.shards
        nodes = max(1, cluster.size // max(group, cluster.gpus))
        per_node = max(1, cluster.gpus // group)
        mtbf = cluster.mtbf * 3600 / max(1, group // cluster.gpus)
        runs = [
            failures.simulate_shards(SIMULATED_SHARDS, unit, nodes, per_node, mtbf, cluster.restart, seed)
            for seed in range(SIMULATED_RUNS)
        ]
        return FailureCost(
            f"{stage.asset.rpartition('/')[2]}: a shard of {self.shard_tokens:,} response tokens",
            unit,
            mtbf,
            0.0,
            failures.lost_share(unit, mtbf),
            _mean([run.lost_share for run in runs]),
            failures.lost_share(stage.seconds, cluster.mtbf_s),
            failures.lost_share(stage.seconds, cluster.mtbf * 3600),
        )

    def _checkpoint_cost(self, stage: StageTime) -> FailureCost:
        """Return what it costs that a failure of any node loses what all GPUs did since the last checkpoint."""
        cluster, every = self.cluster, self.planner.study.train.save_steps
        unit, saving = min(every, self.steps) * self._step_seconds(stage), self._saving_seconds(stage)
        runs = [
            failures.simulate_checkpoints(SIMULATED_SHARDS, unit, cluster.mtbf_s, saving, cluster.restart, seed)
            for seed in range(SIMULATED_RUNS)
        ]
        return FailureCost(
            f"{stage.asset}: {every} steps between checkpoints (save_steps)",
            unit,
            cluster.mtbf_s,
            saving,
            failures.lost_share(unit, cluster.mtbf_s, saving),
            _mean([run.lost_share for run in runs]),
            failures.lost_share(stage.seconds, cluster.mtbf_s),
            None,
        )

    def _saving_seconds(self, stage: StageTime) -> float:
        """Return the mean time of a checkpoint: the adapter with its moments, and the rows of `selections` so far."""
        rank = self.planner.study.train.lora.rank
        rows = stage.work.disk.get("selections", 0.0) / TABLE_BYTES["selections"] / 2
        size = 3 * 4 * self.model.adapter_parameters(rank) + rows * volumes.CHECKPOINT_BYTES_PER_ROW
        return size / self.cluster.storage_rate + rows / volumes.CHECKPOINT_ROWS_PER_SECOND

    def _step_seconds(self, stage: StageTime) -> float:
        """Return the time of an optimiser step without checkpoints."""
        saves = max(0, (self.steps - 1) // self.planner.study.train.save_steps)
        return (stage.seconds - saves * self._saving_seconds(stage)) / self.steps

    @property
    def _longest_training(self) -> StageTime:
        return max((one for one in self.stages if one.asset.endswith(TRAININGS)), key=lambda one: one.seconds)

    @property
    def saving_share(self) -> float:
        """The time of checkpoints as a share of the longest training's other work."""
        stage, train = self._longest_training, self.planner.study.train
        return self._saving_seconds(stage) / (train.save_steps * self._step_seconds(stage))

    @property
    def longest_save_steps(self) -> int:
        """The most steps between checkpoints at which less than 1% of the work is lost; 0 if none are."""
        stage = self._longest_training
        longest = failures.longest_interval(self.cluster.mtbf_s, saving=self._saving_seconds(stage))
        return int(longest / self._step_seconds(stage))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
