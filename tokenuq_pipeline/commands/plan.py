"""`tokenuq plan`: estimate what a study would compute, and check that its model and data are available."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.common import project
from tokenuq_pipeline.commands.plan_text import FRESH, Plan, as_text, assumptions

STATES = {"waiting": "may follow", "unchecked": FRESH}
"""What `status` calls otherwise: what may follow is counted, and of what is unchecked only a check is run."""
MEASURING_S = 300


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
    from tokenuq_ml.costs.lengths import measured_lengths
    from tokenuq_ml.costs.planner import Planner
    from tokenuq_ml.costs.sources import dataset_source, model_source

    spec = config.studies[study]
    models = {name: model_source(config.models[name], store.path(f"models/{name}")) for name in config.models_of(spec)}
    sources = [source for source, _ in models.values()]
    sources += [
        dataset_source(config.datasets[name], store.is_complete(f"datasets/{name}"))
        for name in config.datasets_of(spec)
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
                    "passing_disk": {name: round(size) for name, size in work.temporary_disk.items()},
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
    from tokenuq_ml.costs.machine import BALD_PRECISION, Machine

    head = (architecture.hidden, architecture.vocabulary)
    asked = {"layer": architecture.matrices, "head": head, "precision": precision}
    asked = json.dumps({**asked, "others": sorted({tables, BALD_PRECISION})})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tokenuq_ml.costs.matmul_rate"],
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
    from tokenuq_pipeline.assets.graph import stage_groups

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
        manifest = (
            store.read_manifest(name) if name.endswith("/tokenized_dataset") and store.is_complete(name) else None
        )
        if manifest and all(manifest["fields"][key] == getattr(spec, key) for key in ("model", "max_length")):
            found.append(store.path(manifest["outputs"]["tokenized_dataset"]))
    return found


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


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return path if path.exists() else _existing(path.parent)
