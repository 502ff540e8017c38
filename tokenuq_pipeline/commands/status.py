"""`tokenuq status`: list what is stale, and why."""

import argparse
import json

from tokenuq_pipeline.commands import STALE
from tokenuq_pipeline.commands.common import configuration, project
from tokenuq_pipeline.runtime.paths import store_home


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "status",
        help="list what is stale, and why",
        description="Lists every asset that is not fresh, with the reason, and the assets downstream of it that may "
        "become stale once it is rebuilt. Exit code 0 if everything is fresh, 3 if not.",
    )
    parser.add_argument("--study", metavar="STUDY", help="this study and what it needs; default: all enabled studies")
    parser.add_argument(
        "--deep", action="store_true", help="also read every file and compare it with its recorded hash"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(function=status_command)


def status_command(options: argparse.Namespace) -> int:
    """Run `tokenuq status`."""
    from tokenuq_pipeline.assets.shown_studies import shown_studies
    from tokenuq_pipeline.runtime.store import Store

    studies = [options.study] if options.study else shown_studies(configuration(), Store(store_home()))
    with project(*studies) as here:
        rows = status_rows(here.defs, here.config, studies, here.instance, here.store, options.deep)
    if options.format == "json":
        print(json.dumps(rows, indent=1))
    else:
        print(as_text(rows, studies))
    return STALE if rows else 0


def status_rows(defs, config, studies: list[str], instance, store, deep: bool = False) -> list[dict[str, str]]:
    """Return one row per asset that is not fresh: `asset`, `state`, `reason`, in the order of the graph.

    States: missing, stale, damaged (until `tokenuq verify --forget`, no run makes it again), unchecked (a blocking
    check has not passed), waiting (downstream of one of those).
    """
    from tokenuq_pipeline.automation.explain import explain
    from tokenuq_pipeline.automation.staleness import NEVER_MADE, Records, descendants, staleness, study_keys
    from tokenuq_pipeline.runtime.data_files import observe
    from tokenuq_pipeline.runtime.mending import damage

    records = Records.of(defs.resolve_asset_graph(), config, instance, store)
    assets, parents = records.assets, records.parents
    keys = set().union(*(study_keys(assets, study) for study in studies))
    observe(config, instance, store)
    found = staleness(records, keys)
    states = {
        key: ("missing" if reason == NEVER_MADE else "stale", explain(reason, assets[key], store))
        for key, reason in found.reasons.items()
    }
    for key in keys - states.keys():
        if sentence := damage(store, key.to_user_string(), deep):
            states[key] = ("damaged", sentence)
    for check in sorted(found.pending_checks, key=str):
        states.setdefault(check.asset_key, ("unchecked", f"the check {check.name} has not passed on it"))
    unsettled = states.keys() | descendants(parents, states)
    for key in (unsettled & keys) - states.keys():
        above = sorted(parent.to_user_string() for parent in parents[key] & unsettled)
        states[key] = ("waiting", f"fresh now, may become stale after {_some(above)}")
    rows = ((key.to_user_string(), *states[key]) for key in assets if key in states)
    return [{"asset": name, "state": state, "reason": reason} for name, state, reason in rows]


def _some(names: list[str], most: int = 2) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def as_text(rows: list[dict[str, str]], studies: list[str]) -> str:
    """Return the rows as an aligned table, or a sentence if there are none."""
    if not rows:
        return f"up to date: {', '.join(studies)}"
    name, state = (max(len(row[column]) for row in rows) for column in ("asset", "state"))
    return "\n".join(f"{row['asset']:<{name}}  {row['state']:<{state}}  {row['reason']}" for row in rows)
