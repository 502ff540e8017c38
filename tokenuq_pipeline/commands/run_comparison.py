"""`tokenuq run --comparison`: bring the studies of a comparison up to date, then its page, and print what it found."""

import argparse
from collections.abc import Callable
from functools import partial

from tokenuq_ml.control_characters import escaped
from tokenuq_pipeline.commands.common import configuration, known_comparison, project
from tokenuq_pipeline.runtime.readers import print_on


def run_comparison(options: argparse.Namespace) -> int:
    """Run what the comparison needs of each study, one Dagster run after the other, then the comparison.

    Raises:
        InputError: there is no such comparison, or `--ablation` was given.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.automation.comparison_targets import study_targets

    if options.ablation:
        raise InputError("--ablation goes with --study: a comparison needs what it reads of all its studies")
    config = configuration()
    comparison = known_comparison(config, options.comparison)
    for study, keys in study_targets(config, comparison).items():
        if code := _run_study(options, config, study, keys):
            return code
    return _make_page(config, comparison.name)


def _run_study(options: argparse.Namespace, config, study: str, keys: set) -> int:
    """Bring some assets of a study up to date, and return the exit code."""
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.commands.run import check_disk_space, make
    from tokenuq_pipeline.commands.run_steps import recipe
    from tokenuq_pipeline.runtime.console import CONSOLE
    from tokenuq_pipeline.runtime.trash import Trash

    with project(study, config=config) as here:
        Trash(here.store.home).empty_old()
        runner = StudyRunner(here.defs, here.config, study, here.instance, here.store, CONSOLE, preload=True)
        if not options.ignore_disk_space:
            runner.before_first_wave = partial(check_disk_space, here, study)
        return make(runner, keys, in_steps=recipe(config_of(here.config, [study]), here.store, study))


def _make_page(config, name: str) -> int:
    """Make the page of a comparison whose studies are up to date, print it, and return the exit code."""
    from tokenuq_pipeline.automation.comparison_targets import comparison_key
    from tokenuq_pipeline.automation.jobs import comparison_job
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.commands.run import make
    from tokenuq_pipeline.runtime.console import CONSOLE

    with project(config=config, comparisons=[name]) as here:
        runner = StudyRunner(
            here.defs,
            here.config,
            f"comparison {name}",
            here.instance,
            here.store,
            CONSOLE,
            job=comparison_job(name),
        )
        code = make(runner, {comparison_key(name)})
        if code == 0:
            print_on("")
            print_comparison(here.store, name, print_on)
    return code


def print_comparison(store, name: str, say: Callable[[str], None] = print) -> None:
    """Print the Markdown page of a comparison as it was last built, and the path of its HTML page.

    Args:
        store: the store.
        name: of the comparison.
        say: prints a text.

    Raises:
        InputError: a file is damaged, or the comparison was never made.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.runtime.bucket_store import fetch
    from tokenuq_pipeline.runtime.repair import require_undamaged
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, comparison_path

    asset, folder = f"{COMPARISONS}/{name}", store.path(comparison_path(name))
    require_undamaged(store, asset)
    if not store.is_complete(asset):
        raise InputError(f"{asset}: was never made; run `tokenuq run --comparison {name}`")
    fetch(store, asset, lambda path: path.endswith((".md", ".html", ".png")))
    say(escaped((folder / "comparison.md").read_text(encoding="utf-8")))
    say(f"page: {folder / 'comparison.html'}")
