"""`tokenuq prune`: list what the store holds of nothing that is configured, and remove it when told to."""

import argparse
import sys

from tokenuq_pipeline.commands.common import configuration
from tokenuq_pipeline.runtime.paths import store_home


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "prune",
        help="remove what no configuration names any more",
        description="Lists assets of the store that are in no configuration (an ablation that was taken out, say) and "
        "checkpoints that no training will go on from, with their sizes. Removes them after a question, or with --yes.",
    )
    parser.add_argument("--study", metavar="STUDY", help="only what lies under this name, configured or not")
    parser.add_argument("--yes", action="store_true", help="remove without a question")
    parser.set_defaults(function=prune_command)


def prune_command(options: argparse.Namespace) -> int:
    """`tokenuq prune`."""
    from tokenuq_pipeline.assets.graph import stage_groups
    from tokenuq_pipeline.runtime.pruning import removable, remove
    from tokenuq_pipeline.runtime.store import Store

    store = Store(store_home())
    configured = {asset.name: asset.code_version for _, _, group in stage_groups(configuration()) for asset in group}
    found = removable(store, configured, options.study)
    if not found:
        print(f"{store.home}: nothing to remove")
        return 0
    width = max(len(item.name) for item in found)
    for item in found:
        print(f"{item.name:<{width}}  {item.bytes / 1e6:>10,.1f} MB  {item.why}")
    print(f"{'together':<{width}}  {sum(item.bytes for item in found) / 1e6:>10,.1f} MB")
    if not options.yes:
        if not sys.stdin.isatty():
            print("nothing was removed; give --yes to remove all of these")
            return 0
        if input("remove all of these? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 0
    for item in found:
        remove(store, item)
    print(f"removed {len(found)}")
    return 0
