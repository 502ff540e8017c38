"""`tokenuq prune`: list and delete what no configuration refers to."""

import argparse
import sys

from tokenuq_pipeline.commands.common import configuration
from tokenuq_pipeline.runtime.paths import store_home


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "prune",
        help="delete what no configuration refers to",
        description="Lists assets of the store that are in no configuration (such as a removed ablation), and "
        "checkpoints that no training will resume from, with sizes. Deletes them after a question, or with --yes.",
    )
    parser.add_argument("--study", metavar="STUDY", help="only this study, whether or not it is configured")
    parser.add_argument("--yes", action="store_true", help="delete without a question")
    parser.set_defaults(function=prune_command)


def prune_command(options: argparse.Namespace) -> int:
    """Run `tokenuq prune`."""
    from tokenuq_pipeline.assets.graph import assets_by_name
    from tokenuq_pipeline.runtime.pruning import removable, remove
    from tokenuq_pipeline.runtime.store import Store

    store = Store(store_home())
    configured = {name: asset.code_version for name, asset in assets_by_name(configuration()).items()}
    found = removable(store, configured, options.study)
    if not found:
        print(f"{store.home}: nothing to delete")
        return 0
    width = max(len(item.name) for item in found)
    for item in found:
        print(f"{item.name:<{width}}  {item.bytes / 1e6:>10,.1f} MB  {item.reason}")
    print(f"{'total':<{width}}  {sum(item.bytes for item in found) / 1e6:>10,.1f} MB")
    if not (options.yes or _confirmed()):
        return 0
    for item in found:
        remove(store, item)
    print(f"deleted {len(found)}")
    return 0


def _confirmed() -> bool:
    """Ask the user; without a terminal, the answer is no."""
    if not sys.stdin.isatty():
        print("nothing was deleted; give --yes to delete all of these")
        return False
    if input("delete all of these? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return False
    return True
