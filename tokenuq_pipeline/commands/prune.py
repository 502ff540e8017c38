"""`tokenuq prune`: list and delete what no configuration refers to, or restore what was deleted."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tokenuq_ml.control_characters import escaped_line
from tokenuq_ml.disk import in_words
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import FAILED
from tokenuq_pipeline.commands.common import configuration
from tokenuq_pipeline.commands.json_output import add_json, print_json
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
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--now", action="store_true", help="delete for good, with everything that is in the trash")
    parser.add_argument(
        "--restore", metavar="ASSET", help="move an asset, or all of <study> or <study>/<ablation>, back from the trash"
    )
    add_json(parser, "print JSON: what can be deleted, and with --yes what was; never asks")
    parser.set_defaults(function=prune_command)


def prune_command(options: argparse.Namespace) -> int:
    """Run `tokenuq prune`."""
    from tokenuq_pipeline.runtime.bucket_store import address_of, open_store
    from tokenuq_pipeline.runtime.pruner import pruner_of

    store = open_store()
    pruner = pruner_of(store)
    say = print if not options.json else lambda text: None
    recovered = store.recover()
    for asset, outcome in recovered.items():
        say(f"{asset}: {outcome}")
    if options.restore is not None:
        restored, failures = _restore(store, pruner, options.restore.strip("/"), say)
        if options.json:
            print_json({"restored": restored, "not_restored": failures, "recovered": recovered})
        return FAILED if failures else 0
    found = _found(store, pruner, options.study)
    if old := pruner.trash.empty_old():
        say(f"deleted what was in the trash for more than a week: {_counted(len(old), 'item')}")
    trash = pruner.trash.all() if options.now else []
    items, kept = [item for item in found if not item.kept_because], [item for item in found if item.kept_because]
    result = {**_as_json(items, kept, trash), "recovered": recovered, "deleted": [], "not_deleted": {}}
    _print_items(items, trash, say)
    for item in kept:
        say(f"stays: {escaped_line(f'{item.name}: {item.kept_because}')}")
    if not items and not trash:
        say(f"{address_of(store)}: nothing to delete{_trash_note(pruner)}")
    elif options.yes or (not options.json and _confirmed(options.now)):
        result["deleted"], result["not_deleted"] = _remove(store, pruner, items, options.now, say)
    if options.json:
        print_json(result)
    return FAILED if result["not_deleted"] else 0


def _as_json(items: "Sequence[Removable]", kept: "Sequence[Removable]", trash: "Sequence[Entry]") -> dict[str, Any]:
    """Return what can be deleted, what stays and why, and what is in the trash."""
    return {
        "removable": [
            {"name": one.name, "reason": one.reason, "bytes": one.bytes, "places": dict(one.sizes)} for one in items
        ],
        "stays": {one.name: one.kept_because for one in kept},
        "trash": [
            {"place": entry.path.name, "content": entry.content, "bytes": entry.bytes, "deleted_at": entry.put_at}
            for entry in trash
        ],
        "configuration": _origin(),
    }


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


def _print_items(items: "Sequence[Removable]", trash: "Sequence[Entry]", say: Callable[[str], None]) -> None:
    """Print each item with its reason, its folders and their sizes."""
    for item in items:
        say(f"{in_words(item.bytes):>12}  {escaped_line(item.name)}: {item.reason}")
        for place, size in item.sizes.items():
            say(f"{'':12}    {escaped_line(place)}  {in_words(size)}")
    for entry in trash:
        when = f"deleted on {entry.put_at:%Y-%m-%d %H:%M} UTC"
        say(f"{in_words(entry.bytes):>12}  .trash/{entry.path.name}: {escaped_line(entry.content)}, {when}")
    if items or trash:
        total = sum(item.bytes for item in items) + sum(entry.bytes for entry in trash)
        say(f"{in_words(total):>12}  in total")
    if items:
        say(f"the configuration was read from {_origin()}")


def _remove(
    store: "Store", pruner: "Pruner", items: "Sequence[Removable]", now: bool, say: Callable[[str], None]
) -> tuple[list[str], dict[str, str]]:
    """Delete items, and with `now` the trash too; return what was deleted, and why the others were not."""
    from tokenuq_pipeline.runtime.pruning import NotRemovable

    emptied = pruner.trash.empty() if now else []
    removed, failed = [], {}
    for item in items:
        try:
            pruner.remove(store, item, now)
            removed.append(item.name)
        except NotRemovable as error:
            failed[item.name] = str(error)
            say(f"stays: {escaped_line(str(error))}")
    if now:
        say(f"deleted {_counted(len(removed), 'item')} for good, and {_counted(len(emptied), 'item')} of the trash")
    else:
        say(f"deleted {_counted(len(removed), 'item')}{_trash_note(pruner)}")
    return removed, failed


def _restore(
    store: "Store", pruner: "Pruner", name: str, say: Callable[[str], None]
) -> tuple[list[str], dict[str, str]]:
    """Move assets back from the trash; return those, and why others could not be."""
    from tokenuq_pipeline.runtime.restoring import NotRestorable

    found = pruner.restorable(store, name)
    if not found:
        there = sorted(pruner.restorable(store))
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "") or "nothing"
        raise InputError(f"{pruner.trash_place}: holds no asset {name!r}, and none below it; there is {shown}")
    restored, failed = [], {}
    for asset, entry in found.items():
        try:
            pruner.restore(store, asset, entry)
            restored.append(asset)
            say(f"restored {asset}")
        except NotRestorable as error:
            failed[asset] = str(error)
            say(f"not restored: {escaped_line(str(error))}")
    return restored, failed


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
