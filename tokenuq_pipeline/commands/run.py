"""`tokenuq run`: bring a study up to date, and print its table."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenuq_pipeline.commands.common import STUDY_HELP, configuration, known_studies, project
from tokenuq_pipeline.commands.disk_space import OVERRIDE
from tokenuq_pipeline.commands.make_assets import make
from tokenuq_pipeline.runtime.paths import dagster_home
from tokenuq_pipeline.runtime.readers import print_on

ABLATION_HELP = (
    "make only this ablation's student, evaluation and curriculum, and what they need; a family stands for all of its "
    "settings and seeds; may be given more than once. "
    "The report is rebuilt if all its other inputs are up to date; otherwise it stays as it is"
)


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="bring a study up to date",
        description="Runs the study's Dagster job for everything that is missing or stale, and prints the ablation "
        "table. After Ctrl-C, the same command resumes from the last checkpoint.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--study", metavar="STUDY", help=STUDY_HELP)
    which.add_argument(
        "--comparison",
        metavar="NAME",
        help="a comparison in comparisons.yaml: what it reads of its studies, one run per study, then its page",
    )
    parser.add_argument("--ablation", action="append", nargs="+", metavar="NAME", help=ABLATION_HELP)
    parser.add_argument(
        OVERRIDE, action="store_true", help="run although a disk has less space than the estimate of `tokenuq plan`"
    )
    parser.set_defaults(function=run_command)


def run_command(options: argparse.Namespace) -> int:
    """Run `tokenuq run`."""
    if options.comparison is not None:
        from tokenuq_pipeline.commands.run_comparison import run_comparison

        return run_comparison(options)
    # A flag given twice and a flag with two names mean the same.
    ablations = [name for names in options.ablation or [] for name in names]
    dagster_home()
    config = configuration()
    studies = known_studies(config, options.study)
    for number, study in enumerate(studies, 1):
        if len(studies) > 1:
            print_on(f"{options.study}: study {number} of {len(studies)}")
        if code := run_one(config, study, ablations, options.ignore_disk_space, shows_report=len(studies) == 1):
            return code
    return 0


def run_one(
    config, study: str, ablations: list[str], ignore_disk_space: bool = False, shows_report: bool = True
) -> int:
    """Bring one study of a configuration up to date, in definitions of its own; return the exit code.

    Args:
        config: all of it.
        study: name of the study.
        ablations: as in `run_study`.
        ignore_disk_space: run although a disk has less space than the estimate.
        shows_report: print the table of its report.

    Raises:
        InputError: the study has no such ablation, a tracker cannot be used, or a disk has too little space.
    """
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.commands.before_run import check_before_run
    from tokenuq_pipeline.commands.run_steps import recipe
    from tokenuq_pipeline.runtime.trash import Trash

    # Of this study only: what is asked of all studies of a large grid takes seconds each time.
    with project(study, config=config_of(config, [study])) as here:
        # Before the disk space is looked at; each stage does it too, for runs from the UI.
        Trash(here.store.home).empty_old()
        own = {"study": study, "store": here.store, "ignore_disk_space": ignore_disk_space}
        check = partial(check_before_run, config=here.config, **own)
        in_steps = recipe(here.config, here.store, study)
        return run_study(
            here.defs, here.config, study, ablations, here.instance, here.store, check, True, in_steps, shows_report
        )


def run_study(
    defs,
    config,
    study: str,
    ablations: list[str],
    instance,
    store,
    check: Callable[[list[str]], None] | None = None,
    preload: bool = False,
    in_steps=None,
    shows_report: bool = True,
) -> int:
    """Bring the study up to date, print its progress and results, and return the exit code.

    Args:
        defs: the definitions.
        config: the configuration.
        study: name of the study.
        ablations: make only what these need; empty: everything.
        instance: the Dagster instance.
        store: the store.
        check: called with the names of the assets that are to be made, before anything is; may raise.
        preload: let stages start as forks of a process that has imported the libraries.
        in_steps: the `JobRecipe` of the processes in which steps run side by side, if several models fit. None: steps
            run in this process.
        shows_report: print the table of the study's report.

    Raises:
        InputError: the study has no such ablation, or `check` raises it.
    """
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.runtime.console import CONSOLE

    runner = StudyRunner(defs, config, study, instance, store, CONSOLE, before_first_wave=check, preload=preload)
    code = make(runner, runner.targets(ablations), with_report=not ablations, in_steps=in_steps)
    if code == 0 and shows_report:
        print_report(store, study)
    return code


def print_report(store, study: str) -> None:
    """Print the table of families or ablations as it was last built, and the path of the page.

    Raises:
        InputError: a file of the report is damaged.
    """
    from tokenuq_ml.reports.text import report_text
    from tokenuq_pipeline.assets.ablation_report import report_path
    from tokenuq_pipeline.runtime.repair import require_undamaged

    require_undamaged(store, f"{study}/ablation_report")
    folder: Path = store.path(report_path(study))
    table = report_text(folder)
    if table:
        print_on("\n" + table)
    if (folder / "report.html").is_file():
        print_on(f"\nreport: {folder / 'report.html'}")
