"""`tokenuq verify`: compare every file of the store with what its manifest recorded."""

import argparse
from collections.abc import Callable
from functools import partial

from tokenuq_pipeline.commands import FAILED
from tokenuq_pipeline.commands.common import configuration, known_studies
from tokenuq_pipeline.commands.json_output import add_json, print_json


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify",
        help="compare every file of the store with its recorded hash",
        description="Reads every file of the study's assets, and of the models and datasets that it uses, and compares "
        "it with the SHA-256 in the asset's manifest. Also finds damaged manifests, and files that belong to no asset. "
        "Exit code 0 if all files match, 1 if not.",
    )
    parser.add_argument("--study", metavar="STUDY", help="default: everything in the store")
    parser.add_argument(
        "--forget",
        action="store_true",
        help="delete the manifests of assets that do not match, so that the next run rebuilds these assets, and move "
        "files that belong to no asset to the trash",
    )
    add_json(parser, "print JSON: what was compared, and what does not match")
    parser.set_defaults(function=verify_command)


def verify_command(options: argparse.Namespace) -> int:
    """Run `tokenuq verify`."""
    from tokenuq_pipeline.runtime.bucket_store import address_of, open_store
    from tokenuq_pipeline.runtime.repair import other_damage, repair, repair_others

    # As the comparison goes: it reads every file.
    say = partial(print, flush=True) if not options.json else lambda text: None
    store = open_store()
    prefixes = _prefixes(options.study) if options.study else None
    recovered = store.recover() if options.forget else {}
    for asset, outcome in recovered.items():
        say(f"{asset}: {outcome}")
    others = [] if prefixes else other_damage(store)
    for sentence in others:
        say(sentence)
    if options.forget and not prefixes:
        repair_others(store)
    assets = [name for name in store.assets() if prefixes is None or _belongs(name, prefixes)]
    manifests = [store.read_manifest(name) for name in assets]
    files = sum(len(manifest.files) for manifest in manifests if manifest)
    wrong = {name: problems for name in assets if (problems := _problems(store, name, say))}
    repaired = {name: repair(store, name) for name in wrong} if options.forget else {}
    for name, outcome in repaired.items():
        say(f"{name}: {outcome}")
    if not assets and not others:
        summary = f"{address_of(store)}: holds nothing of {options.study or 'any study'}"
    elif not wrong and not others:
        summary = f"{files} files of {len(assets)} assets match their recorded hashes"
    else:
        advice = "the next run makes them again" if options.forget else "--forget makes the next run rebuild them"
        summary = f"{len(wrong)} of {len(assets)} assets do not match; {advice}"
    say(summary)
    if options.json:
        print_json(
            {
                "store": str(address_of(store)),
                "assets": len(assets),
                "files": files,
                "damaged": wrong,
                "other_files": others,
                "recovered": recovered,
                "repaired": repaired,
                "summary": summary,
            }
        )
    return 0 if assets and not wrong and not others else FAILED


def _problems(store, asset: str, say: Callable[[str], None]) -> list[str]:
    """Return how the files of an asset differ from the manifest, and print it."""
    problems = list(store.problems(asset))
    for problem in problems:
        say(f"{asset}: {problem}")
    return problems


def _prefixes(study: str) -> tuple[str, ...]:
    """Return the names of the assets that studies of a name need; `<study>/` stands for its own.

    Raises:
        InputError: there is no such study.
    """
    config = configuration()
    specs = [config.studies[name] for name in known_studies(config, study)]
    own = (f"{spec.name}/" for spec in specs)
    models = (f"models/{name}" for spec in specs for name in config.models_of(spec))
    datasets = (f"datasets/{name}" for spec in specs for name in config.datasets_of(spec))
    return tuple(dict.fromkeys((*own, *models, *datasets)))


def _belongs(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefix) if prefix.endswith("/") else name == prefix for prefix in prefixes)
