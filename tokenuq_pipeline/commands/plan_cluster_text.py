"""A plan of a cluster as text and JSON. What is assumed is marked as assumed."""

from tokenuq_ml.costs import cluster as clusters
from tokenuq_ml.costs import machine, volumes
from tokenuq_ml.costs.cluster_failures import (
    SIMULATED_RUNS,
    SIMULATED_SHARDS,
    FailureCost,
    failure_costs,
    longest_save_steps,
    saving_share,
)
from tokenuq_ml.costs.cluster_plan import ClusterPlan
from tokenuq_ml.costs.cluster_stage import StageTime
from tokenuq_ml.costs.efficiency import BY_CARD
from tokenuq_ml.costs.failures import LOST_LIMIT
from tokenuq_ml.costs.passes import response_tokens, total_tokens
from tokenuq_ml.costs.work import STARTUP_S
from tokenuq_pipeline.commands.units import disk, duration

HEADINGS = (
    "asset",
    "GPUs",
    "sharded over",
    "PFLOP",
    "compute",
    "exchange",
    "storage",
    "one process",
    "time",
    "waits for",
)
WAITS = ("compute", "exchange", "storage", "one process")


def as_text(plan: ClusterPlan) -> str:
    """Return the stages, totals, volumes, the cost of failures and the assumptions."""
    cluster, planner = plan.cluster, plan.planner
    train = [planner.train_data]
    lines = [
        f"study {planner.study.name} on {cluster.nodes:,} nodes of {cluster.gpus} {cluster.card.name}: "
        f"{cluster.size:,} GPUs; {plan.model.parameters / 1e9:,.1f} billion parameters; "
        f"{count(response_tokens(train))} response tokens of {count(total_tokens(train))}",
        "",
        *_table(plan),
        "",
        *_totals(plan),
    ]
    for heading, said in (
        ("Volumes", _volumes(plan)),
        ("Limits of one process", _limits(plan)),
        ("Failures", _failures(plan)),
        ("Planned as if stages could do it, which they cannot yet", plan.not_in_code()),
        ("Assumed, not measured", assumed(plan)),
        ("Known", known(plan)),
    ):
        if said:
            lines += ["", heading, *(f"  - {one}" for one in said)]
    return "\n".join(lines)


def as_json(plan: ClusterPlan) -> dict:
    """Return everything that the text says, as JSON values."""
    stage, waits = plan.bottleneck
    return {
        "study": plan.planner.study.name,
        "cluster": {**vars(plan.cluster), "card": vars(plan.cluster.card)},
        "parameters": plan.model.parameters,
        "stages": [_stage_json(one) for one in plan.stages],
        "totals": {
            "seconds": plan.seconds,
            "gpu_hours": plan.gpu_hours,
            "cost": None if plan.cluster.price is None else plan.cluster.price * plan.gpu_hours,
            "disk": plan.disk,
            "bottleneck": {"asset": stage.asset, "waits_for": waits},
        },
        "tables": [vars(one) for one in plan.tables],
        "shards": {"response_tokens": plan.shard_tokens, "count": plan.shards},
        "teacher_cache": {**plan.teacher_cache, "online_reason": plan.planner.online_reason},
        "events": dict(zip(("count", "bytes"), volumes.dagster_events(len(plan.stages), plan.seconds), strict=True)),
        "limits": _limits(plan),
        "failures": [vars(one) for one in failure_costs(plan)],
        "longest_save_steps": longest_save_steps(plan),
        "saving_share": saving_share(plan),
        "not_in_code": plan.not_in_code(),
        "assumed": assumed(plan),
        "known": known(plan),
    }


def _stage_json(stage: StageTime) -> dict:
    return {
        "asset": stage.asset,
        "gpus": stage.working,
        "layout": stage.layout and vars(stage.layout),
        "flop": sum((stage.work.flop or {}).values()),
        "disk": stage.work.disk,
        "seconds_by": stage.seconds_by,
        "seconds": stage.seconds,
        "waits_for": stage.bottleneck,
    }


def count(number: float) -> str:
    """Return a count in billions, millions or thousands."""
    for letter, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {letter}"
    return f"{number:,.0f}"


def _table(plan: ClusterPlan) -> list[str]:
    rows = [HEADINGS, *(_cells(stage, plan.cluster) for stage in plan.stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            f"{cell:<{width}}" if n in (0, 9) else f"{cell:>{width}}" for n, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _cells(stage: StageTime, cluster: clusters.Cluster) -> tuple[str, ...]:
    flop = sum((stage.work.flop or {}).values())
    return (
        stage.asset,
        f"{stage.working:,}" if stage.working else "",
        f"{stage.layout.group:,}" if stage.layout else "",
        f"{flop / 1e15:,.0f}" if flop >= 1e15 else "",
        *(duration(stage.seconds_by[name]) if stage.seconds_by.get(name, 0) >= 1 else "" for name in WAITS),
        duration(stage.seconds),
        waits_for(stage, cluster),
    )


def waits_for(stage: StageTime, cluster: clusters.Cluster) -> str:
    """Return what a stage waits for, and where."""
    if stage.bottleneck == "compute":
        return f"compute in {stage.precision}"
    if stage.bottleneck == "exchange":
        inside = cluster.nodes == 1 or 1 < stage.layout.group <= cluster.gpus
        return f"exchange {'inside' if inside else 'between'} nodes"
    return "generation's memory" if stage.bottleneck == "memory" else stage.bottleneck


def _totals(plan: ClusterPlan) -> list[str]:
    stage, _ = plan.bottleneck
    price = plan.cluster.price
    cost = "" if price is None else f", {price * plan.gpu_hours:,.0f} at {price:g} per GPU-hour"
    return [
        f"Time: {duration(plan.seconds)}, one stage after another and without failures; {plan.gpu_hours:,.0f} "
        f"GPU-hours{cost}",
        f"Bottleneck: {stage.asset} takes {stage.seconds / plan.seconds:.0%} of it, and waits for "
        f"{waits_for(stage, plan.cluster)}",
        f"Bytes: {disk(plan.disk)} stay in the store",
    ]


def _volumes(plan: ClusterPlan) -> list[str]:
    cache = plan.teacher_cache
    events, size = volumes.dagster_events(len(plan.stages), plan.seconds)
    said = [
        f"{one.name}: {one.rows:,} rows, {disk(one.size)}, {one.row_groups:,} row groups, a footer of "
        f"{disk(one.footer)}"
        for one in plan.tables
    ]
    used = plan.planner.online_reason
    return [
        *said,
        f"shards: {plan.shards:,} of {plan.shard_tokens:,} response tokens",
        f"teacher's cache: {disk(cache['bytes'])}; each epoch of a distilling student reads {disk(cache['read'])} in "
        f"{duration(cache['read_seconds'])}, where an online teacher computes for {duration(cache['online_seconds'])}"
        f"; planned: {'cached' if used is None else f'online, since {used}'}",
        f"Dagster: {events:,} events, {disk(size)}; their number does not depend on shards",
    ]


def _limits(plan: ClusterPlan) -> list[str]:
    cluster, rows = plan.cluster, max((one.rows for one in plan.tables if one.name == "selections"), default=0)
    held, long = plan.examples_memory, [one.name for one in plan.tables if one.rows >= volumes.POLARS_ROWS]
    said = [
        f"each training process holds all examples: {disk(held)}, {disk(held * cluster.gpus)} per node of "
        f"{cluster.gpus}",
        f"rank 0 of a student holds its selections: {disk(volumes.SELECTION_BYTES * rows)}, and writes those so far "
        "with each checkpoint",
        f"a shard has {plan.shard_batches} batches: under torchrun all processes share one shard at a time, so that "
        "more of them wait; the times above are of shards side by side, as on Ray",
    ]
    if long:
        said.append(
            f"{', '.join(long)}: {volumes.POLARS_ROWS:,} rows or more, which polars counts only with its extra rt64 "
            "(`pip install 'polars[rt64]'`)"
        )
    return said


def _failures(plan: ClusterPlan) -> list[str]:
    cluster = plan.cluster
    lines = [
        f"one of {cluster.nodes:,} nodes fails every {duration(cluster.mtbf_s)}; lost work as a share of all, by the "
        f"closed form and in {SIMULATED_RUNS} simulations of {SIMULATED_SHARDS:,} units:"
    ]
    costs = failure_costs(plan)
    lines += [_failure(one) for one in costs]
    lines += [
        f"{one.what.partition(':')[0]}: more than {LOST_LIMIT:.0%} is lost with the process that writes its table: "
        "measure less, or in several studies"
        for one in costs
        if one.of_writer is not None and one.of_writer > LOST_LIMIT
    ]
    most, steps = longest_save_steps(plan), plan.planner.study.train.save_steps
    verdict = "keeps" if 0 < steps <= most or most >= plan.steps else "does not keep"
    return [
        *lines,
        f"save_steps: {steps} {verdict} lost work under {LOST_LIMIT:.0%}; "
        + (f"up to {most:,} steps do" if most else "no interval does: checkpoints take too long")
        + f"; checkpoints take {share(saving_share(plan))} of the time of the steps",
    ]


def _failure(one: FailureCost) -> str:
    whole = "never ends" if one.from_start > 100 else f"{one.from_start:.1%}"
    kept = ""
    if None not in (one.kept, one.of_writer, one.of_writer_simulated, one.of_ranks):
        kept = (
            f"kept every {duration(one.kept)} by the process that writes the table: {share(one.of_writer)} and "
            f"{share(one.of_writer_simulated)} by failures of its node, or {share(one.of_ranks)} by those of any node "
            "under torchrun; "
        )
    return (
        f"{one.what}, {duration(one.unit)}: {share(one.closed)} and {share(one.simulated)}; {kept}{whole} if each "
        "failure started the stage again"
    )


def share(value: float) -> str:
    """Return a share with two digits that count, down to 0.001%."""
    if value < 1e-5:
        return "under 0.001%"
    return f"{value:.1%}" if value >= 0.1 else f"{100 * value:.2g}%"


def assumed(plan: ClusterPlan) -> list[str]:
    """Return what nobody has measured."""
    cluster, planner = plan.cluster, plan.planner
    network = cluster.card.network / 1e9 if cluster.network is None else cluster.network
    return [
        f"share of the card's peak that work reaches, float32 for any work in it: {BY_CARD[cluster.card.name].text}",
        f"share of the peak of links, network and memory: {machine.LINK_EFFICIENCY:g}; of a card's memory that is "
        f"usable: {machine.USABLE_MEMORY:g}",
        f"network: {network:g} GB/s per GPU; storage: {cluster.storage_rate / 1e9:g} GB/s for all nodes",
        f"a node fails every {cluster.mtbf:,.0f} h"
        f"{' (Llama 3: 419 interruptions in 54 days of 16,384 GPUs)' if cluster.mtbf == clusters.NODE_MTBF_H else ''}; "
        f"lost work continues after {cluster.restart:g} s",
        f"train data: {planner.train_data.rows:,} rows of {planner.train_data.tokens:.0f} tokens, "
        f"{planner.train_data.response:.0f} scored; {planner.train_data.origin}",
        f"{plan.steps:,} steps of {planner.study.train.batch_size:,} examples, {plan.layout.examples} per GPU and pass",
        "compute, exchange and generation's memory overlap; storage and one process do not",
        "one stage has the whole cluster at a time; more than one node needs Ray",
        "base models are sharded over GPUs as FSDP does it, adapters are not; activations are "
        + ("recomputed" if planner.study.train.gradient_checkpointing else "stored, not recomputed"),
    ]


def known(plan: ClusterPlan) -> list[str]:
    """Return what was measured or published."""
    card = plan.cluster.card
    return [
        f"{card.name}, published: {card.bfloat16 / 1e12:g} TFLOP/s in bfloat16, {card.float32 / 1e12:g} in float32, "
        f"{card.memory / 1e9:g} GB at {card.memory_rate / 1e12:g} TB/s, link {card.link / 1e9:g} GB/s",
        f"measured on one processor core: {volumes.TOKENS_PER_SECOND:,.0f} tokens/s tokenised; rows/s written: "
        + ", ".join(f"{name} {rate:,.0f}" for name, rate in volumes.ROWS_PER_SECOND.items())
        + "".join(f", {name} once more to keep it {rate:,.0f}" for name, rate in volumes.KEPT_ROWS_PER_SECOND.items())
        + f", selections of a checkpoint {volumes.CHECKPOINT_ROWS_PER_SECOND:,.0f}",
        f"{STARTUP_S:g} s for each stage to start",
    ]
