"""`tokenuq prune`: list and delete what no configuration refers to, or restore what was deleted."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenuq_ml.control_characters import escaped_line
from tokenuq_ml.disk import in_words
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import FAILED
from tokenuq_pipeline.commands.common import configuration
from tokenuq_pipeline.runtime.paths import config_folders

if TYPE_CHECKING:
    from tokenuq_pipeline.runtime.pruner import Pruner
    from tokenuq_pipeline.runtime.pruning import Removable
    from tokenuq_pipeline.runtime.store import Store
    from tokenuq_pipeline.runtime.trash import Entry


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "prune",
        help="delete what no configuration refers to",
        description="Lists assets of the store that are in no configuration (such as a removed ablation), and "
        "checkpoints that no training will resume from, with paths and sizes. After a question, or with --yes, moves "
        "them to the folder .trash of the store, which keeps them for a week.",
    )
    parser.add_argument("--study", metavar="STUDY", help="only this study, whether or not it is configured")
    parser.add_argument("--yes", action="store_true", help="delete without a question")
    parser.add_argument("--now", action="store_true", help="delete for good, with everything that is in the trash")
    parser.add_argument(
        "--restore", metavar="ASSET", help="move an asset, or all of <study> or <study>/<ablation>, back from the trash"
    )
    parser.set_defaults(function=prune_command)


def prune_command(options: argparse.Namespace) -> int:
    """Run `tokenuq prune`."""
    from tokenuq_pipeline.runtime.bucket_store import address_of, open_store
    from tokenuq_pipeline.runtime.pruner import pruner_of

    store = open_store()
    pruner = pruner_of(store)
    for asset, outcome in store.recover().items():
        print(f"{asset}: {outcome}")
    if options.restore is not None:
        return _restore(store, pruner, options.restore.strip("/"))
    found = _found(store, pruner, options.study)
    if old := pruner.trash.empty_old():
        print(f"deleted what was in the trash for more than a week: {_counted(len(old), 'item')}")
    trash = pruner.trash.all() if options.now else []
    items, kept = [item for item in found if not item.kept_because], [item for item in found if item.kept_because]
    _print_items(items, trash)
    for item in kept:
        print(f"stays: {escaped_line(f'{item.name}: {item.kept_because}')}")
    if not items and not trash:
        print(f"{address_of(store)}: nothing to delete{_trash_note(pruner)}")
        return 0
    if not (options.yes or _confirmed(options.now)):
        return 0
    return _remove(store, pruner, items, options.now)


def _found(store: "Store", pruner: "Pruner", study: str | None) -> list:
    """Return what no configuration refers to.

    Raises:
        InputError: the configuration is not the store's own.
    """
    from tokenuq_pipeline.assets.graph import assets_by_name
    from tokenuq_pipeline.runtime.pruning import foreign

    config = configuration()
    configured = {name: asset.code_version for name, asset in assets_by_name(config).items()}
    if because := foreign(store, configured):
        raise InputError(
            f"{because}, and would delete all of it; it was read from {_origin()}: set TOKENUQ_CONFIG to the folder "
            "with their studies.yaml, or TOKENUQ_HOME to the store that you mean"
        )
    if study is None:
        return pruner.removable(store, configured, None)
    # Also of a study that was removed from the configuration.
    named = config.studies_of(study) or (study,)
    return [item for one in named for item in pruner.removable(store, configured, one)]


def _print_items(items: "Sequence[Removable]", trash: "Sequence[Entry]") -> None:
    """Print each item with its reason, its folders and their sizes."""
    for item in items:
        print(f"{in_words(item.bytes):>12}  {escaped_line(item.name)}: {item.reason}")
        for place, size in item.sizes.items():
            print(f"{'':12}    {escaped_line(place)}  {in_words(size)}")
    for entry in trash:
        when = f"deleted on {entry.put_at:%Y-%m-%d %H:%M} UTC"
        print(f"{in_words(entry.bytes):>12}  .trash/{entry.path.name}: {escaped_line(entry.content)}, {when}")
    if items or trash:
        total = sum(item.bytes for item in items) + sum(entry.bytes for entry in trash)
        print(f"{in_words(total):>12}  in total")
    if items:
        print(f"the configuration was read from {_origin()}")


def _remove(store: "Store", pruner: "Pruner", items: "Sequence[Removable]", now: bool) -> int:
    """Delete items, and with `now` the trash too; return the exit code."""
    from tokenuq_pipeline.runtime.pruning import NotRemovable

    emptied = pruner.trash.empty() if now else []
    removed, failed = 0, 0
    for item in items:
        try:
            pruner.remove(store, item, now)
            removed += 1
        except NotRemovable as error:
            failed += 1
            print(f"stays: {escaped_line(str(error))}")
    if now:
        print(f"deleted {_counted(removed, 'item')} for good, and {_counted(len(emptied), 'item')} of the trash")
    else:
        print(f"deleted {_counted(removed, 'item')}{_trash_note(pruner)}")
    return FAILED if failed else 0


def _restore(store: "Store", pruner: "Pruner", name: str) -> int:
    """Move assets back from the trash and return the exit code."""
    from tokenuq_pipeline.runtime.restoring import NotRestorable

    found = pruner.restorable(store, name)
    if not found:
        there = sorted(pruner.restorable(store))
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "") or "nothing"
        raise InputError(f"{pruner.trash_place}: holds no asset {name!r}, and none below it; there is {shown}")
    failed = 0
    for asset, entry in found.items():
        try:
            pruner.restore(store, asset, entry)
            print(f"restored {asset}")
        except NotRestorable as error:
            failed += 1
            print(f"not restored: {escaped_line(str(error))}")
    return FAILED if failed else 0


def _origin() -> str:
    """Return where the configuration was read from."""
    folders = ", ".join(map(str, config_folders(os.environ)))
    return f"{folders} (TOKENUQ_CONFIG {'is set' if os.environ.get('TOKENUQ_CONFIG') else 'is not set'})"


def _trash_note(pruner: "Pruner") -> str:
    """Return what the trash holds, for the end of a sentence; nothing if it is empty."""
    size = pruner.trash.bytes
    kept = "kept for a week after deletion; `tokenuq prune --restore ASSET` brings an asset back, `--now` empties it"
    return f"; {pruner.trash_place} holds {in_words(size)}, {kept}" if size else ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _confirmed(now: bool) -> bool:
    """Ask the user; without a terminal, the answer is no."""
    if not sys.stdin.isatty():
        print("nothing was deleted; give --yes to delete all of these")
        return False
    question = "delete all of these for good? [y/N] " if now else "delete all of these? [y/N] "
    if input(question).strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return False
    return True
