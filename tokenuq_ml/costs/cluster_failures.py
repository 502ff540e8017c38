"""What failures of nodes cost a study on a cluster: by the closed forms and simulations of `failures.py`."""

from dataclasses import dataclass

from tokenuq_ml.costs import failures, volumes
from tokenuq_ml.costs.cluster_plan import TRAININGS, ClusterPlan
from tokenuq_ml.costs.cluster_stage import StageTime
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.costs.training_state import checkpoint_bytes

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
    """The same if a failure of any node started the whole stage again."""
    kept: float | None = None
    """Seconds between two times at which the process that forms batches and writes the table keeps what is finished."""
    of_writer: float | None = None
    """Lost work per useful work by failures of the node of that process, by the closed form."""
    of_writer_simulated: float | None = None
    """The same, in simulations."""
    of_ranks: float | None = None
    """The same by failures of any node, each of which stops all processes of a stage under torchrun."""


def failure_costs(plan: ClusterPlan) -> list[FailureCost]:
    """Return what failures cost in scoring, BALD and the longest training."""
    by_stage = {stage.asset.rpartition("/")[2]: stage for stage in plan.stages}
    found = [_shard_cost(plan, by_stage[name]) for name in ("token_losses", "token_uncertainty") if name in by_stage]
    return [*found, _checkpoint_cost(plan, longest_training(plan))]


def longest_training(plan: ClusterPlan) -> StageTime:
    """Return the training that takes longest."""
    return max((one for one in plan.stages if one.asset.endswith(TRAININGS)), key=lambda one: one.seconds)


def saving_share(plan: ClusterPlan) -> float:
    """Return the time of checkpoints as a share of the longest training's other work."""
    stage, train = longest_training(plan), plan.planner.study.train
    return _saving_seconds(plan, stage) / (train.save_steps * _step_seconds(plan, stage))


def longest_save_steps(plan: ClusterPlan) -> int:
    """Return the most steps between checkpoints at which less than 1% of the work is lost; 0 if none are."""
    stage = longest_training(plan)
    longest = failures.longest_interval(plan.cluster.mtbf_s, saving=_saving_seconds(plan, stage))
    return int(longest / _step_seconds(plan, stage))


def _shard_cost(plan: ClusterPlan, stage: StageTime) -> FailureCost:
    """Return what it costs that a group scores a shard, which a failure of one of its nodes loses.

    And that one process keeps the finished shards, whose node may fail too.
    """
    cluster, group = plan.cluster, max(1, stage.layout.group)
    groups = max(1, stage.working // group)
    unit = max(stage.seconds_by["compute"], stage.seconds_by["exchange"]) * groups / plan.shards
    nodes = max(1, cluster.size // max(group, cluster.gpus))
    mtbf = cluster.mtbf * 3600 / max(1, group // cluster.gpus)
    runs = [
        failures.simulate_shards(
            SIMULATED_SHARDS, unit, nodes, max(1, cluster.gpus // group), mtbf, cluster.restart, seed
        )
        for seed in range(SIMULATED_RUNS)
    ]
    name = stage.asset.rpartition("/")[2]
    size = stage.work.disk[name]
    kept = volumes.kept_every(name, size, stage.seconds)
    # What is not kept is lost on all nodes: what was finished since, and of the unfinished shards about one of all.
    lost = kept + unit / groups
    saving = kept / stage.seconds * volumes.keeping_seconds(name, size)
    # The next process writes the rows again that are kept: half of them, on average.
    restart = cluster.restart + volumes.writing_seconds(name, size) / 2
    writers = [
        failures.simulate_checkpoints(SIMULATED_SHARDS, lost, cluster.mtbf * 3600, saving, restart, seed)
        for seed in range(SIMULATED_RUNS)
    ]
    return FailureCost(
        f"{name}: a shard of {plan.shard_tokens:,} response tokens",
        unit,
        mtbf,
        0.0,
        failures.lost_share(unit, mtbf),
        sum(run.lost_share for run in runs) / SIMULATED_RUNS,
        failures.lost_share(stage.seconds, cluster.mtbf_s),
        kept,
        failures.lost_share(lost, cluster.mtbf * 3600, saving),
        sum(run.lost_share for run in writers) / SIMULATED_RUNS,
        failures.lost_share(lost, cluster.mtbf_s, saving),
    )


def _checkpoint_cost(plan: ClusterPlan, stage: StageTime) -> FailureCost:
    """Return what it costs that a failure of any node loses what all GPUs did since the last checkpoint."""
    cluster, every = plan.cluster, plan.planner.study.train.save_steps
    unit, saving = min(every, plan.steps) * _step_seconds(plan, stage), _saving_seconds(plan, stage)
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
        sum(run.lost_share for run in runs) / SIMULATED_RUNS,
        failures.lost_share(stage.seconds, cluster.mtbf_s),
    )


def _saving_seconds(plan: ClusterPlan, stage: StageTime) -> float:
    """Return the mean time of a checkpoint: the adapter with its moments, and the rows of `selections` so far."""
    train = plan.planner.study.train
    rows = stage.work.disk.get("selections", 0.0) / TABLE_BYTES["selections"] / 2
    size = checkpoint_bytes(plan.model, train, train.lora.rank) / 2 + rows * volumes.CHECKPOINT_BYTES_PER_ROW
    return size / plan.cluster.storage_rate + rows / volumes.CHECKPOINT_ROWS_PER_SECOND


def _step_seconds(plan: ClusterPlan, stage: StageTime) -> float:
    """Return the time of an optimiser step without checkpoints."""
    saves = max(0, (plan.steps - 1) // plan.planner.study.train.save_steps)
    return (stage.seconds - saves * _saving_seconds(plan, stage)) / plan.steps
