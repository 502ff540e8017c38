"""`tokenuq`: run a study from the terminal, on the same instance and by the same job as the web UI.

Only the command line: what is stale is in `waves.py`, what is printed on the way in `progress.py`.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import StudySpec
from tokenuq_pipeline.instance import open_instance, use_dagster_home
from tokenuq_pipeline.nodes import OUTPUTS, Node
from tokenuq_pipeline.progress import ProgressHandler, progress_logger
from tokenuq_pipeline.store import Store
from tokenuq_pipeline.waves import next_wave, stale_keys

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed, 2 bad usage or configuration, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="tokenuq", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="materialise what is stale of a study",
        description="Materialises what is stale of a study, with progress, and prints the ablation table. What is up to "
                    "date is not computed again; an interrupted run goes on where it was.")
    run.add_argument("--study", required=True, help="a name in studies.yaml")
    run.add_argument("--ablation", action="append", default=[], metavar="NAME", nargs="+",
                     help="only these ablations and what they are made from; the report waits for the others")
    arguments = parser.parse_args(argv)
    try:
        return run_study(arguments.study, [name for names in arguments.ablation for name in names])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def run_study(name: str, ablations: list[str]) -> int:
    """The `run` command."""
    # Before definitions.py is imported: it reads the configuration and the environment.
    warnings.filterwarnings("ignore")
    from tokenuq_pipeline.definitions import CHECKOUT, build_defs, default_config, default_home

    os.environ.setdefault("TOKENUQ_HOME", str(default_home()))
    use_dagster_home(CHECKOUT)
    config, home = default_config(), default_home()
    study = chosen_study(config, name, ablations)
    handler = ProgressHandler()
    defs = dg.Definitions.merge(build_defs(config, home), dg.Definitions(loggers={"progress": progress_logger(handler)}))
    with open_instance(CHECKOUT) as instance:
        code = materialise_stale(defs, instance, Store(home), study, ablations, handler)
    if code == OK and not ablations:
        print_report(Store(home), study)
    return code


def chosen_study(config: Config, name: str, ablations: list[str]) -> StudySpec:
    """The study, with its name and the ablations' names checked.

    Raises:
        InputError: naming what is allowed.
    """
    if name not in config.studies:
        raise InputError(f"--study {name}: no such study; allowed: {', '.join(config.studies)}")
    study = config.studies[name]
    for ablation in ablations:
        if ablation not in study.ablations:
            raise InputError(f"--ablation {ablation}: not of study {name}; allowed: {', '.join(study.ablations)}")
    return study


def target_nodes(defs: dg.Definitions, study: StudySpec, ablations: list[str]) -> dict[dg.AssetKey, Node]:
    """Every asset that the command is to bring up to date, by key."""
    graph = defs.resolve_asset_graph()
    if ablations:
        wanted = [Node(stage, study.name, ablation).key for ablation in ablations
                  for stage in ("student", "curriculum", "evaluation")]
        keys = dg.AssetSelection.assets(*wanted).upstream().resolve(graph)
    else:
        keys = dg.AssetSelection.assets(Node("ablation_report", study.name).key).upstream().resolve(graph)
    return {key: node_of(key) for key in keys}


def node_of(key: dg.AssetKey) -> Node:
    """The node behind an asset key."""
    parts = key.path
    if parts[0] in ("models", "datasets"):
        return Node(parts[0], name=parts[1])
    return Node(parts[-1], parts[0], parts[1] if len(parts) == 3 else None)


def materialise_stale(defs: dg.Definitions, instance: dg.DagsterInstance, store: Store, study: StudySpec,
                      ablations: list[str], handler: ProgressHandler) -> int:
    """Waves of the study's job until nothing is stale."""
    graph = defs.resolve_asset_graph()
    nodes = target_nodes(defs, study, ablations)
    parents = {key: set(graph.get(key).parent_keys) & set(nodes) for key in nodes}
    job = defs.resolve_job_def(study.name)
    started, waves, made = time.monotonic(), 0, set()
    while stale := stale_keys(defs, instance, store, nodes):
        wave = next_wave(set(stale), parents)
        if wave <= made:
            print(f"error: still stale after being made: {', '.join(sorted(k.to_user_string() for k in stale))}",
                  file=sys.stderr)
            return FAILED
        waves += 1
        print(f"{study.name}: {len(stale)} of {len(nodes)} assets are stale; wave {waves} makes {len(wave)}")
        for key in sorted(wave, key=lambda key: key.path):
            print(f"    {key.to_user_string()}: {stale[key]}")
        handler.expect(len(wave))
        result = job.execute_in_process(
            instance=instance, asset_selection=sorted(wave, key=lambda key: key.path), raise_on_error=False,
            run_config={"loggers": {"progress": {}}}, tags={"tokenuq/command": "run"})
        if not result.success:
            print(f"{study.name}: failed; mend what is said above and run the same command again: what is done stays "
                  "done", file=sys.stderr)
            return FAILED
        made |= wave
    if not waves:
        print(f"{study.name}: up to date, nothing to recompute ({len(nodes)} assets)")
        return OK
    print(f"{study.name}: {len(made)} assets made in {time.monotonic() - started:.0f} s")
    width = max(map(len, handler.seconds))
    for label, seconds in handler.seconds.items():
        print(f"    {label:<{width}}  {seconds:7.1f} s")
    return OK


def print_report(store: Store, study: StudySpec) -> None:
    """The ablation table, and where the page is."""
    from tokenuq_ml.reports.text import ablation_table_text

    folder = store.path(Node("ablation_report", study.name), OUTPUTS["ablation_report"][0])
    print()
    print(ablation_table_text(json.loads((folder / "ablation_table.json").read_text())))
    print(f"\nreport: {Path(folder, 'report.html')}")


if __name__ == "__main__":
    sys.exit(main())
