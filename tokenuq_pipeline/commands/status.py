"""`tokenuq status`: what is stale, and why."""

import argparse
from typing import TYPE_CHECKING

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import STALE
from tokenuq_pipeline.commands.common import configuration, known_comparison, known_export, known_studies, project
from tokenuq_pipeline.commands.json_output import add_json, print_json
from tokenuq_pipeline.commands.status_text import (
    Row,
    StudyStatus,
    as_lines,
    as_table,
    is_stale,
    where_details_are,
)

if TYPE_CHECKING:
    from tokenuq_ml.config.load import Config
    from tokenuq_pipeline.runtime.store import Store


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "status",
        help="print what is fresh, stale or not made; with --study or --all also why",
        description="Prints one line per study: fresh, stale, incomplete or not made, with the number of assets by "
        "state. Studies are those that the UI shows: enabled ones, those with anything in the store, and those that "
        "TOKENUQ_STUDIES names. With --study or --all, also lists each asset that is not fresh, with the reason. Exit "
        "code 0 if nothing is stale (what was never made is not), 3 if anything is.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--study", action="append", metavar="STUDY", help="this study, asset by asset; may be given more than once"
    )
    which.add_argument(
        "--comparison",
        metavar="NAME",
        help="this comparison of comparisons.yaml and what it reads of its studies, asset by asset",
    )
    which.add_argument(
        "--export", metavar="NAME", help="this export of exports.yaml and what it reads of its study, asset by asset"
    )
    which.add_argument("--all", action="store_true", help="every study, comparison and export, asset by asset")
    parser.add_argument(
        "--deep", action="store_true", help="also read every file and compare it with its recorded hash"
    )
    what = "print JSON: an object per study; with any of the options above, one per asset that is not fresh"
    add_json(parser, what, has_format=True)
    parser.set_defaults(function=status_command)


def status_command(options: argparse.Namespace) -> int:
    """Run `tokenuq status`."""
    from tokenuq_pipeline.runtime.bucket_store import open_store

    config, store = configuration(), open_store()
    details = bool(options.study or options.comparison or options.export or options.all)
    studies, rows = study_statuses(config, _asked(options, config, store), store, options.deep)
    if options.format == "json":
        print_json(rows if details else [study.as_json() for study in studies])
    elif details:
        made = [row for row in rows if any(row in study.rows for study in studies if study.made)]
        print(escaped(redacted("\n\n".join(filter(None, (as_lines(studies), as_table(made)))))))
    else:
        print(escaped(redacted("\n".join(filter(None, (as_lines(studies), where_details_are(studies)))))))
    return STALE if is_stale(rows) else 0


def _asked(options: argparse.Namespace, config: "Config", store: "Store") -> list[str]:
    """Return the studies that are asked for, comparisons as `comparisons/<name>`, and exports as `export/<name>`.

    Raises:
        InputError: there is no such study, comparison or export.
    """
    from tokenuq_pipeline.assets.shown_studies import shown_comparisons, shown_exports, shown_studies

    if options.all:
        return [*config.studies, *map(_as_asset, config.comparisons), *map(_as_export, config.exports)]
    if options.study:
        return list(dict.fromkeys(one for name in options.study for one in known_studies(config, name)))
    if options.comparison:
        return [_as_asset(known_comparison(config, options.comparison).name)]
    if options.export:
        return [_as_export(known_export(config, options.export).name)]
    return [
        *shown_studies(config, store),
        *map(_as_asset, shown_comparisons(config, store)),
        *map(_as_export, shown_exports(config, store)),
    ]


def _as_asset(comparison: str) -> str:
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS

    return f"{COMPARISONS}/{comparison}"


def _as_export(export: str) -> str:
    from tokenuq_pipeline.runtime.store_layout import EXPORTS

    return f"{EXPORTS}/{export}"


def _part(config: "Config", asked: list[str]) -> "Config":
    """Return the configuration of studies, comparisons and exports."""
    from tokenuq_pipeline.assets.shown_studies import config_of

    comparisons = [name for name in config.comparisons if _as_asset(name) in asked]
    exports = [name for name in config.exports if _as_export(name) in asked]
    return config_of(config, asked, comparisons=comparisons, exports=exports)


def needed(config: "Config", asked: str, store: "Store | None" = None) -> list[str]:
    """Return the assets of a study with those that it needs, or a comparison or export with all that is upstream of it.

    Args:
        config: all of it.
        asked: a study, `comparisons/<name>` or `export/<name>`.
        store: leave out what a comparison does without because it was never made; None: leave out nothing.
    """
    from tokenuq_pipeline.assets.graph import assets_by_name
    from tokenuq_pipeline.automation.staleness import ancestors, needed_parents, parents_of

    assets = assets_by_name(_part(config, [asked]))
    if asked in config.studies:
        return list(assets)
    by_key = {asset.key: asset for asset in assets.values()}
    parents = parents_of(by_key) if store is None else needed_parents(by_key, store)
    upstream = ancestors(parents, [assets[asked].key])
    return [name for name, asset in assets.items() if asset.key in upstream]


def study_statuses(
    config: "Config", studies: list[str], store: "Store", deep: bool = False
) -> tuple[list[StudyStatus], list[Row]]:
    """Return the status of each study, comparison and export, and the rows of all, in the order of the graph.

    Definitions are built, and Dagster's records read, only for those that the store holds anything of.

    Args:
        config: all of it.
        studies: their names; comparisons as `comparisons/<name>`, exports as `export/<name>`.
        store: the store.
        deep: read every file.
    """
    from tokenuq_pipeline.assets.graph import assets_by_name
    from tokenuq_pipeline.assets.shown_studies import held

    held_now = held(store)
    content = held_now.studies | set(map(_as_asset, held_now.comparisons)) | set(map(_as_export, held_now.exports))
    made = [study for study in studies if study in content]
    assets = {study: needed(config, study, store) for study in studies}
    found: dict[str, Row] = {}
    if made:
        part = _part(config, made)
        with project(
            *part.studies, config=part, comparisons=list(part.comparisons), exports=list(part.exports)
        ) as here:
            found = {row["asset"]: row for row in status_rows(here.defs, part, made, here.instance, store, deep)}
    known = {name for study in made for name in assets[study]}
    for name in dict.fromkeys(name for study in studies for name in assets[study] if name not in known):
        if store.read_manifest(name) is None:
            found[name] = {"asset": name, "state": "missing", "reason": "was never made"}
    statuses = [
        StudyStatus(study, len(names), [found[name] for name in names if name in found], study in content)
        for study, names in assets.items()
    ]
    order = [name for name in assets_by_name(_part(config, studies)) if name in found]
    return statuses, [found[name] for name in order]


def status_rows(defs, config, studies: list[str], instance, store, deep: bool = False) -> list[dict[str, str]]:
    """Return one row per asset that is not fresh: `asset`, `state`, `reason`, in the order of the graph.

    `studies` may hold comparisons as `comparisons/<name>` and exports as `export/<name>`, for which everything upstream
    of them is looked at.

    States: missing, stale, damaged (until `tokenuq verify --forget`, no run makes it again), unchecked (a blocking
    check has not passed), waiting (downstream of one of those).
    """
    from tokenuq_pipeline.automation.explain import explain
    from tokenuq_pipeline.automation.staleness import NEVER_MADE, Records, descendants, keys_of, staleness
    from tokenuq_pipeline.runtime.data_files import observe
    from tokenuq_pipeline.runtime.repair import damage

    records = Records.of(defs.resolve_asset_graph(), config, instance, store)
    assets, parents = records.assets, records.parents
    keys = set().union(*(keys_of(assets, study, store) for study in studies))
    observe(config, instance, store, {key.path[1] for key in keys if key.path[0] == "datasets"})
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
