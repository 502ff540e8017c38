"""`tokenuq adopt`: report to Dagster what the store holds."""

import argparse
import time
from typing import TYPE_CHECKING

from tokenuq_pipeline.commands import FAILED, STALE
from tokenuq_pipeline.commands.common import configuration, known_studies, project
from tokenuq_pipeline.commands.json_output import add_json, print_json

if TYPE_CHECKING:
    from tokenuq_pipeline.automation.adoption import Adoption


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "adopt",
        help="report to Dagster what the store holds",
        description="Reports every asset that is complete and up to date in the store, and that Dagster does not know, "
        "as a materialisation with its versions, and evaluates its checks: after DAGSTER_HOME was lost or changed, or "
        "the store was copied. Reads all their files, compares them with their recorded hashes, and computes nothing "
        "again. `tokenuq run` does so by itself. Exit code 0 if everything is recorded, 3 if a run has to make "
        "something, 1 if a file is damaged or a check fails.",
    )
    parser.add_argument("--study", metavar="STUDY", help="this study and what it needs; default: all in the store")
    add_json(parser, "print JSON: what was adopted, and what was not, with reasons")
    parser.set_defaults(function=adopt_command)


def adopt_command(options: argparse.Namespace) -> int:
    """Run `tokenuq adopt`."""
    from tokenuq_pipeline.assets.checks import table_checks
    from tokenuq_pipeline.assets.shown_studies import held
    from tokenuq_pipeline.automation.adoption import Adoption, adopt, checks_by_asset
    from tokenuq_pipeline.automation.staleness import Records, keys_of
    from tokenuq_pipeline.runtime.bucket_store import address_of, open_store
    from tokenuq_pipeline.runtime.data_files import observe
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, EXPORTS

    began, store, config = time.monotonic(), open_store(), configuration()
    named = known_studies(config, options.study) if options.study else config.studies
    studies = [name for name in named if options.study or name in held(store).studies]
    if not studies:
        if options.json:
            print_json(as_json(Adoption(), 0, time.monotonic() - began))
        else:
            print(f"{address_of(store)}: holds nothing of any study")
        return 0
    comparisons = [] if options.study else [name for name in config.comparisons if name in held(store).comparisons]
    exports = [] if options.study else [name for name in config.exports if name in held(store).exports]
    with project(*studies, config=config, comparisons=comparisons, exports=exports) as here:
        observe(here.config, here.instance, here.store)
        records = Records.of(here.defs.resolve_asset_graph(), here.config, here.instance, here.store)
        asked = [*studies, *(f"{COMPARISONS}/{name}" for name in comparisons)]
        asked += [f"{EXPORTS}/{name}" for name in exports]
        keys = set().union(*(keys_of(records.assets, name, here.store) for name in asked))
        found = adopt(records, keys, checks_by_asset(table_checks(here.config)))
    if options.json:
        print_json(as_json(found, len(keys), time.monotonic() - began))
    else:
        print(as_text(found, len(keys), time.monotonic() - began))
    return exit_code(found)


def exit_code(found: "Adoption") -> int:
    """Return 1 if something is wrong, 3 if a run has something to make, 0 if everything is recorded."""
    if found.damaged or found.failed_checks:
        return FAILED
    return STALE if found.stale or found.refused else 0


def as_json(found: "Adoption", assets: int, seconds: float) -> dict:
    """Return what was adopted and what was not, with the reasons."""
    return {
        "adopted": list(found.adopted),
        "recorded_before": _known(found, assets),
        "stale": found.stale,
        "refused": found.refused,
        "damaged": found.damaged,
        "failed_checks": found.failed_checks,
        "recovered": found.recovered,
        "seconds": round(seconds, 1),
    }


def _known(found: "Adoption", assets: int) -> int:
    return assets - len(found.adopted) - len(found.refused) - len(found.stale)


def as_text(found: "Adoption", assets: int, seconds: float) -> str:
    """Return what was adopted and what was not, with the reasons."""
    from tokenuq_pipeline.automation.adoption import counted

    known = _known(found, assets)
    lines = [f"{name}: {outcome}" for name, outcome in found.recovered.items()]
    lines += [f"{name}: not adopted: {reason}" for name, reason in (found.stale | found.refused).items()]
    lines += [f"check failed: {text}" for text in found.failed_checks]
    adopted = f"{counted(len(found.adopted))} adopted in {seconds:.1f} s, nothing recomputed"
    lines.append(f"{adopted}; {counted(known)} recorded before" if known else adopted)
    return "\n".join(lines)
