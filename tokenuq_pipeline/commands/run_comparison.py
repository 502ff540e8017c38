"""`tokenuq run --comparison`: bring the studies of a comparison up to date, then its page, and print what it found."""

import argparse
from functools import partial

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
            print_comparison(here.store, name)
    return code


def print_comparison(store, name: str) -> None:
    """Print the verdict and tables of a comparison as it was last built, and the path of its page.

    Raises:
        InputError: a file is damaged, or the comparison was never made.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.runtime.repair import require_undamaged
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, comparison_path

    require_undamaged(store, f"{COMPARISONS}/{name}")
    folder = store.path(comparison_path(name))
    page = folder / "comparison.md"
    if not page.is_file():
        raise InputError(f"comparison {name} was never made; run it with `tokenuq run --comparison {name}`")
    print_on("\n" + page.read_text(encoding="utf-8"))
    print_on(f"page: {folder / 'comparison.html'}")
