"""`tokenuq plan`: what a study would compute, and what that takes, before it is begun.

The formulas are `planning.py`'s, what is fresh is `status`' to say.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.common import project

FRESH = "fresh"
STATES = {"waiting": "may follow", "unchecked": FRESH}
"""What `status` calls otherwise: what may follow is counted, and of what is unchecked only a check is run."""
MEASURING_S = 300
ACCELERATOR_FLOPS = 400e12
"""As docs/costs.md assumes it of one accelerator."""
HEADINGS = ("asset", "state", "tokens", "TFLOP", "time", "disk", "peak memory")


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="what a study would compute: tokens, FLOPs, time, disk, memory",
        description="Lists the study's stages with what each would take on this machine, and whether its model and its "
        "datasets can be had. Computes nothing but the machine's rate of matrix products, and downloads no weights: "
        "the hub is asked by one HEAD request a source.",
    )
    parser.add_argument("--study", required=True, metavar="STUDY", help="a name of studies.yaml")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(function=plan_command)


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


def plan_command(options: argparse.Namespace) -> int:
    """`tokenuq plan`."""
    from tokenuq_pipeline.commands.status import status_rows

    with project() as here:
        (study,) = here.studies(options.study)
        rows = status_rows(here.defs, here.config, [study], here.instance, here.store)
        states = {row["asset"]: STATES.get(row["state"], row["state"]) for row in rows}
        plan = make_plan(here.config, study, states, here.store)
    if options.format == "json":
        print(json.dumps(vars(plan), indent=1))
    else:
        print(as_text(plan, shutil.disk_usage(_existing(here.store.home)).free))
    return 0


def make_plan(config, study: str, states: dict[str, str], store, measure=None) -> Plan:
    """The plan, for the states of what is not fresh; `measure(architecture, training, tables)` gives the machine.

    Raises:
        InputError: the machine's rate could not be measured.
    """
    from tokenuq_ml.plan_inputs import dataset_source, measured_lengths, model_source
    from tokenuq_ml.planning import Planner

    spec = config.studies[study]
    models = {name: model_source(config.models[name], store.path(f"models/{name}")) for name in config.models_of(spec)}
    sources = [source for source, _ in models.values()]
    sources += [
        dataset_source(config.datasets[name], store.is_whole(f"datasets/{name}")) for name in config.datasets_of(spec)
    ]
    sizes = {name: found for name, (_, found) in models.items()}
    known, groups = sizes[spec.model], _groups(config, study)
    machine = None
    if states and known is not None:
        machine = (measure or measure_machine)(known.architecture, spec.precision.training, spec.precision.tables)
    fresh = frozenset(a.stage for group in groups for a in group if a.study and not a.ablation and a.name not in states)
    planner = Planner(config, spec, sizes, measured_lengths(_tokenised(config, study, store)), machine, fresh)
    stages = []
    for group in groups:
        started = False
        for asset in group:
            state = states.get(asset.name, FRESH)
            row = {"asset": asset.name, "state": state, "tokens": 0, "flop": 0.0, "seconds": 0.0}
            row |= {"disk": {}, "memory": {}, "passing_disk": {}}
            if state != FRESH:
                work = planner.work(asset.stage, asset.ablation or asset.path[-1])
                row |= {
                    "tokens": round(work.tokens),
                    "flop": None if work.flop is None else sum(work.flop.values()),
                    "seconds": work.seconds(machine, starts=not started),
                    "disk": {name: round(size) for name, size in work.disk.items()},
                    "memory": {name: round(size) for name, size in work.memory.items()},
                    "passing_disk": {name: round(size) for name, size in work.passing.items()},
                }
                started = True
            stages.append(row)
    plan = Plan(
        study,
        spec.model,
        known.architecture.parameters if known else None,
        stages,
        machine and vars(machine),
        [vars(source) for source in sources],
        assumptions(planner, sizes, spec) if states else [],
    )
    plan.totals = _totals(stages)
    return plan


def measure_machine(architecture, precision: str, tables: str = "auto"):
    """This machine in the precisions of training, tables and BALD, by a child process: torch stays out of this one.

    Raises:
        InputError: the child failed.
    """
    from tokenuq_ml.planning import BALD_PRECISION, Machine

    head = (architecture.hidden, architecture.vocabulary)
    asked = {"layer": architecture.matrices, "head": head, "precision": precision}
    asked = json.dumps({**asked, "others": sorted({tables, BALD_PRECISION})})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tokenuq_ml.gemm_rate"],
            input=asked,
            capture_output=True,
            text=True,
            timeout=MEASURING_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the rate of matrix products took above {MEASURING_S} s to measure: is memory short?"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"the rate of matrix products could not be measured: {last}")
    return Machine(**json.loads(done.stdout))


def _groups(config, study: str) -> list[list]:
    """The study's assets and those that it needs, one list a child process."""
    from tokenuq_pipeline.definitions import stage_groups

    spec = config.studies[study]
    needed = {f"models/{name}" for name in config.models_of(spec)}
    needed |= {f"datasets/{name}" for name in config.datasets_of(spec)}
    mine = lambda asset: asset.study == study or asset.name in needed  # noqa: E731
    groups = ([asset for asset in group if mine(asset)] for _, _, group in stage_groups(config))
    return [group for group in groups if group]


def _tokenised(config, study: str, store) -> list[Path]:
    """Token tables of the same model and cut, this study's first."""
    spec, found = config.studies[study], []
    for name in sorted(store.assets(), key=lambda name: not name.startswith(f"{study}/")):
        manifest = store.read_manifest(name) if name.endswith("/tokenized_dataset") and store.is_whole(name) else None
        if manifest and all(manifest["fields"][key] == getattr(spec, key) for key in ("model", "max_length")):
            found.append(store.path(manifest["outputs"]["tokenized_dataset"]))
    return found


def assumptions(planner, sizes: dict, spec) -> list[str]:
    """Whatever the numbers rest on, one sentence each."""
    from tokenuq_ml import planning

    known = sizes[spec.model]
    said = [f"sizes of {spec.model}: {known.origin}" if known else _unknown(spec.model)]
    said += [_unknown(name) for name, found in sizes.items() if found is None and name != spec.model]
    data = [(f"{spec.dataset}, train", planner.train_data), (f"{spec.dataset}, test", planner.held_out[0])]
    data += [(name, one) for name, one in zip(spec.ood, planner.held_out[1:], strict=False)]
    for what, one in data:
        said.append(f"{what}: {one.rows:,} rows of {one.tokens:.0f} tokens, {one.response:.0f} scored; {one.origin}")
    for what, rows, prompt, new in planner.asked:
        said.append(
            f"{what}: {rows:,} prompts of {prompt:,.0f} tokens a model; each answer takes all the {new:,} tokens it may"
        )
    alpaca = spec.evaluation.alpaca_eval
    if alpaca is not None:
        judge = "no judge is named: nothing is generated for it" if alpaca.judge is None else "the judge is not counted"
        said.append(f"AlpacaEval: {judge}")
    if known:
        said.append(
            "the teacher's states are cached"
            if planner.online_because is None
            else f"students run the teacher online: {planner.online_because}"
        )
        rates = ", ".join(f"{kind} {share:g}" for kind, share in planning.EFFICIENCY.items())
        said += [
            f"shares of the rate of matrix products that are reached: {rates}; of SmolLM2-135M on two cores, "
            "docs/results/benchmarks.md",
            f"{planning.STARTUP_S:g} s for each child process to start; batches padded by {planning.PADDING - 1:.0%}; "
            "downloads take no time",
            "memory is of the longest texts that the study allows; formulas in docs/models_and_data.md",
        ]
    said.append("what may follow is counted, though it stays as it is where its inputs come out the same")
    return said


def _unknown(model: str) -> str:
    return f"sizes of {model}: not known until its config can be read, or its entry in models.yaml gives `config:`"


def _totals(stages: list[dict]) -> dict:
    planned = [row for row in stages if row["state"] != FRESH]
    known = all(row["flop"] is not None for row in planned)
    largest = max(planned, key=lambda row: sum(row["memory"].values()), default=None)
    return {
        "stages": len(planned),
        FRESH: len(stages) - len(planned),
        "tokens": sum(row["tokens"] for row in planned),
        "flop": sum(row["flop"] for row in planned) if known else None,
        "seconds": sum(row["seconds"] for row in planned) if known else None,
        "disk": sum(sum(row["disk"].values()) for row in planned),
        "passing_disk": max((sum(row["passing_disk"].values()) for row in planned), default=0),
        "largest": largest and largest["asset"],
        "memory": largest["memory"] if largest else {},
    }


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


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return path if path.exists() else _existing(path.parent)
