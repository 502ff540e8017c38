"""`tokenuq verify`: does every file of the store still match what its manifest recorded?"""

import argparse

from tokenuq_pipeline.commands import FAILED
from tokenuq_pipeline.commands.common import configuration, known_study
from tokenuq_pipeline.runtime.paths import store_home


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare every file of the store with its recorded hash",
        description="Reads every file of the study's assets, and of the models and datasets that it uses, and compares "
        "it with the SHA-256 in the asset's manifest. Exit code 0 where all match, 1 where one does not.",
    )
    parser.add_argument("--study", metavar="STUDY", help="by default everything in the store")
    parser.add_argument(
        "--forget", action="store_true", help="let the next run make anew what does not match, by dropping its manifest"
    )
    parser.set_defaults(function=verify_command)


def verify_command(options: argparse.Namespace) -> int:
    """`tokenuq verify`."""
    from tokenuq_pipeline.runtime.store import Store

    store, prefixes = Store(store_home()), None
    if options.study:
        config = configuration()
        spec = config.studies[known_study(config, options.study)]
        roots = {"models": config.models_of(spec), "datasets": config.datasets_of(spec)}
        needed = (f"{kind}/{name}" for kind, names in roots.items() for name in names)
        prefixes = (f"{options.study}/", *needed)
    assets = [name for name in store.assets() if prefixes is None or _belongs(name, prefixes)]
    if not assets:
        print(f"{store.home}: holds nothing of {options.study or 'any study'}")
        return FAILED
    files = sum(len((store.read_manifest(name) or {"files": []})["files"]) for name in assets)
    wrong = 0
    for name in assets:
        problems = store.problems(name)
        for problem in problems:
            print(f"{name}: {problem}", flush=True)
        wrong += bool(problems)
        if problems and options.forget:
            store.forget(name)
    if wrong:
        done = (
            "forgotten: the next run makes them anew" if options.forget else "--forget lets the next run make them anew"
        )
        print(f"{wrong} of {len(assets)} assets do not match; {done}")
        return FAILED
    print(f"{files} files of {len(assets)} assets match their recorded hashes")
    return 0


def _belongs(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefix) if prefix.endswith("/") else name == prefix for prefix in prefixes)
