"""The plan as text: one row per asset, totals, assumptions and verdicts."""

import os
from dataclasses import dataclass, field

FRESH = "fresh"
ACCELERATOR_FLOPS = 400e12
"""As docs/costs.md assumes it of one accelerator."""
HEADINGS = ("asset", "state", "tokens", "TFLOP", "time", "disk", "peak memory")


@dataclass
class Plan:
    """All that is printed. A row of `stages` has None where the model's sizes are not known."""

    study: str
    model: str
    parameters: int | None
    stages: list[dict]
    machine: dict | None
    sources: list[dict]
    assumptions: list[str]
    totals: dict = field(default_factory=dict)


def assumptions(planner, sizes: dict, spec) -> list[str]:
    """Whatever the numbers rest on, one sentence each."""
    from tokenuq_ml.costs.passes import PADDING
    from tokenuq_ml.costs.work import EFFICIENCY, STARTUP_S

    known = sizes[spec.model]
    said = [f"sizes of {spec.model}: {known.origin}" if known else _unknown(spec.model)]
    said += [_unknown(name) for name, found in sizes.items() if found is None and name != spec.model]
    data = [(f"{spec.dataset}, train", planner.train_data), (f"{spec.dataset}, test", planner.held_out[0])]
    data += [(name, one) for name, one in zip(spec.ood, planner.held_out[1:], strict=False)]
    for what, one in data:
        said.append(f"{what}: {one.rows:,} rows of {one.tokens:.0f} tokens, {one.response:.0f} scored; {one.origin}")
    for one in planner.generated_evaluations:
        said.append(
            f"{one.name}: {one.prompts:,} prompts of {one.prompt_tokens:,.0f} tokens per model; each answer has all of "
            f"its {one.new_tokens:,} tokens"
        )
    alpaca = spec.evaluation.alpaca_eval
    if alpaca is not None:
        judge = "no judge is named: nothing is generated for it" if alpaca.judge is None else "the judge is not counted"
        said.append(f"AlpacaEval: {judge}")
    if known:
        said.append(
            "the teacher's states are cached"
            if planner.online_reason is None
            else f"students run the teacher online: {planner.online_reason}"
        )
        rates = ", ".join(f"{kind} {share:g}" for kind, share in EFFICIENCY.items())
        said += [
            f"shares of the rate of matrix products that are reached: {rates}; of SmolLM2-135M on two cores, "
            "docs/results/benchmarks.md",
            f"{STARTUP_S:g} s for each child process to start; batches padded by {PADDING - 1:.0%}; "
            "downloads take no time",
            "memory is of the longest texts that the study allows; formulas in docs/studies.md",
        ]
    said.append("what may follow is counted, though it stays as it is where its inputs come out the same")
    return said


def _unknown(model: str) -> str:
    return f"sizes of {model}: not known until its config can be read, or its entry in models.yaml gives `config:`"


def as_text(plan: Plan, free: int) -> str:
    """The table, what it adds up to, sources and assumptions. `free`: bytes on the store's file system."""
    size = f"{plan.parameters / 1e6:,.0f} million parameters" if plan.parameters else "size not known"
    totals, lines = plan.totals, [f"study {plan.study}: {plan.model}, {size}", ""]
    cells = [HEADINGS, *(_cells(row) for row in plan.stages)]
    cells.append(_cells({**totals, "asset": "together", "state": "", "disk": {"": totals["disk"]}}))
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    for row in cells:
        left = [f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    lines.append("")
    lines += _verdicts(plan, free)
    lines += ["", "Sources"]
    width = max(len(source["name"]) for source in plan.sources)
    for source in plan.sources:
        ready = "ready" if source["ready"] else "not there"
        lines.append(f"  {source['kind']:<7}  {source['name']:<{width}}  {ready:<9}  {source['words']}")
    if plan.assumptions:
        lines += ["", "Assumptions", *(f"  - {one}" for one in plan.assumptions)]
    return "\n".join(lines)


def _verdicts(plan: Plan, free: int) -> list[str]:
    totals, machine = plan.totals, plan.machine
    if not totals["stages"]:
        return ["up to date: nothing to compute"]
    said = []
    if machine:
        rate = machine["flop_per_second"]
        said.append(
            f"This machine: {machine['device']}, {machine['threads']} threads, {machine['precision']} "
            f"({machine['precision_reason']}): {rate / 1e9:,.0f} GFLOP/s of matrix products at the model's shapes, "
            "measured just now"
        )
        slower = {one["precision"]: one["flop_per_second"] for one in machine["others"].values()}
        slower.pop(machine["precision"], None)
        said += [f"In {name}, which BALD is computed in: {rate / 1e9:,.0f} GFLOP/s" for name, rate in slower.items()]
        if machine["device"] == "cpu" and totals["seconds"] is not None:
            said.append(
                f"At {ACCELERATOR_FLOPS / 1e12:.0f} TFLOP/s, what docs/costs.md assumes of an accelerator, the FLOPs "
                f"alone take {duration(totals['flop'] / ACCELERATOR_FLOPS)}; generation is slower than its FLOPs there"
            )
    if totals["memory"]:
        parts = ", ".join(f"{name} {memory(size)}" for name, size in totals["memory"].items())
        said.append(f"Largest process: {totals['largest']}, {memory(sum(totals['memory'].values()))}: {parts}")
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (machine is None or machine["device"] == "cpu") and sum(totals["memory"].values()) > has:
            said.append(
                f"This machine has {memory(has)} of memory: too little. micro_batch_size makes activations smaller"
            )
    needed = totals["disk"] + totals["passing_disk"]
    said.append(
        f"Disk: {disk(totals['disk'])} stay, {disk(totals['passing_disk'])} more for a while (checkpoints, the hub's "
        f"cache); {disk(free)} are free" + (": too little" if needed > free else "")
    )
    return said


def _cells(row: dict) -> tuple[str, ...]:
    if row["state"] == FRESH:
        return (row["asset"], FRESH, *[""] * 5)
    unknown = row["flop"] is None
    return (
        row["asset"],
        row["state"],
        f"{row['tokens']:,}" if row["tokens"] else "",
        "?" if unknown else f"{row['flop'] / 1e12:,.1f}" if row["flop"] else "",
        "?" if unknown else duration(row["seconds"]),
        ("?" if unknown and not row["disk"] else disk(sum(row["disk"].values()))) if row["disk"] or unknown else "",
        "?" if unknown and not row["memory"] else memory(sum(row["memory"].values())),
    )


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def disk(size: float) -> str:
    """Decimal, as disks are sold."""
    unit, length = next(((unit, length) for unit, length in (("GB", 1e9), ("MB", 1e6)) if size >= length), ("kB", 1e3))
    return f"{size / length:,.1f} {unit}"


def memory(size: float) -> str:
    """Binary, as memory is."""
    return f"{size / 2**30:,.1f} GiB"
