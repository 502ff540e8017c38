"""The rows of a plan, one per asset; and whether the disks have the space for them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.disk_space import require_disk_space
from tokenuq_pipeline.commands.plan_text import FRESH

if TYPE_CHECKING:
    from tokenuq_ml.costs.planner import Planner
    from tokenuq_pipeline.runtime.run_progress import Estimates


def stage_rows(config, study: str, states: dict[str, str], store, sizes: dict, machine) -> tuple["Planner", list[dict]]:
    """Return the planner of a study, and one row per asset.

    Args:
        config: the configuration.
        study: name of the study.
        states: asset -> state, of assets that are not fresh.
        store: where existing tables are looked up.
        sizes: model -> its sizes; None if they are not known.
        machine: what the plan is for.
    """
    from tokenuq_ml.costs.lengths import measured_lengths
    from tokenuq_ml.costs.planner import Planner

    groups = study_groups(config, study)
    fresh = frozenset(
        asset.stage
        for group in groups
        for asset in group
        if asset.study and not asset.ablation and asset.name not in states
    )
    lengths = measured_lengths(tokenised_tables(config, study, store))
    planner = Planner(config, config.studies[study], sizes, lengths, machine, fresh)
    return planner, [row for group in groups for row in _group_rows(group, states, planner, machine)]


def check_disk_space(config, study: str, assets: Iterable[str], store) -> None:
    """Check that the disks have the space that the estimate asks for; takes some milliseconds.

    Only models whose sizes are known without a request count.

    Raises:
        DiskFull: a disk has too little; the message names it, and says how to go on.
    """
    require_disk_space(_quick_rows(config, study, assets, store), store)


def estimates_of(assets: Collection[str], config, study: str, store) -> "Estimates":
    """Return about what assets take compared with each other; takes some milliseconds.

    `RunProgress` multiplies them by what it measures. Empty if nothing can be estimated: a run does without.
    """
    from tokenuq_pipeline.runtime.run_progress import Estimate

    try:
        rows = _quick_rows(config, study, assets, store)
    except (InputError, OSError):
        return {}
    return {row["asset"]: Estimate(row["seconds"], bool(row["flop"])) for row in rows if row["flop"] is not None}


def _quick_rows(config, study: str, assets: Iterable[str], store) -> list[dict]:
    """Return the rows of some assets on a machine that is not measured, without requests and generated data."""
    from tokenuq_ml.costs.lengths import nothing_generated
    from tokenuq_ml.costs.machine import Machine
    from tokenuq_ml.costs.sources import model_source
    from tokenuq_pipeline.runtime.bucket_store import model_folder

    spec = config.studies[study]
    sizes = {
        name: model_source(config.models[name], model_folder(store, name), True, config.datasets)[1]
        for name in config.models_of(spec)
    }
    # Of the rates only the ratio counts. The smaller one of the precisions: an estimate of the disk space that is too
    # high would refuse a run.
    float32 = {"precision": "float32", "flop_per_second": 1.2e11}
    machine = Machine(2e11, "cpu", "bfloat16", 1, "", 1, {"float32": float32})
    with nothing_generated():
        _, rows = stage_rows(config, study, dict.fromkeys(assets, "stale"), store, sizes, machine)
    return [row for row in rows if row["state"] != FRESH]


def study_groups(config, study: str) -> list[list]:
    """Return the study's assets and those that it needs, one list per child process."""
    from tokenuq_pipeline.assets.graph import stage_groups

    spec = config.studies[study]
    needed = {f"models/{name}" for name in config.models_of(spec)}
    needed |= {f"datasets/{name}" for name in config.datasets_of(spec)}
    groups = (
        [asset for asset in group.assets if asset.study == study or asset.name in needed]
        for group in stage_groups(config)
    )
    return [group for group in groups if group]


def _group_rows(group: list, states: dict[str, str], planner, machine) -> list[dict]:
    """Return one row per asset of a child process. The first that is made counts the start of the process."""
    rows, started = [], False
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
        rows.append(row)
    return rows


def tokenised_tables(config, study: str, store) -> list[Path]:
    """Return the token tables of the same model and maximum length, this study's first."""
    spec, found = config.studies[study], []
    for name in sorted(store.assets(), key=lambda name: not name.startswith(f"{study}/")):
        if not name.endswith("/tokenized_dataset") or not store.is_complete(name):
            continue
        manifest = store.read_manifest(name)
        if all(manifest.fields.get(key) == getattr(spec, key) for key in ("model", "max_length")):
            require_undamaged(store, "tokenized_dataset", study=name.partition("/")[0])
            found.append(store.path(manifest.outputs["tokenized_dataset"]))
    return found


def require_undamaged(store, table: str, **partitions: str) -> None:
    """Raise an InputError if a partition that is read differs from what its manifest recorded."""
    from tokenuq_ml.tables.integrity import damage_of_table

    if damage := damage_of_table(store.home, table, **partitions):
        raise InputError(damage)
