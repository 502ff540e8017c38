"""`tokenuq run`: bring a study up to date, and print its table."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenuq_pipeline.commands.common import STUDY_HELP, configuration, known_studies, project
from tokenuq_pipeline.commands.disk_space import OVERRIDE
from tokenuq_pipeline.commands.json_output import print_json
from tokenuq_pipeline.commands.make_assets import Output, add_arguments, make
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
    which.add_argument(
        "--export", metavar="NAME", help="an export in exports.yaml: what it reads of its study, then the model"
    )
    parser.add_argument("--ablation", action="append", nargs="+", metavar="NAME", help=ABLATION_HELP)
    parser.add_argument(
        OVERRIDE, action="store_true", help="run although a disk has less space than the estimate of `tokenuq plan`"
    )
    add_arguments(parser)
    parser.set_defaults(function=run_command)


def run_command(options: argparse.Namespace) -> int:
    """Run `tokenuq run`."""
    if options.comparison is not None:
        from tokenuq_pipeline.commands.run_comparison import run_comparison

        return run_comparison(options)
    if options.export is not None:
        from tokenuq_pipeline.commands.run_export import run_export

        return run_export(options)
    # A flag given twice and a flag with two names mean the same.
    ablations = [name for names in options.ablation or [] for name in names]
    dagster_home()
    config, output = configuration(), Output.of(options)
    studies, code = known_studies(config, options.study), 0
    for number, study in enumerate(studies, 1):
        if len(studies) > 1:
            output.say(f"{options.study}: study {number} of {len(studies)}")
        code = run_one(config, study, ablations, options.ignore_disk_space, len(studies) == 1, output)
        if code:
            break
    if output.as_json:
        found = [_as_json(result, study) for result, study in zip(output.results, studies, strict=False)]
        print_json(found if options.study in config.grids else found[0])
    return code


def _as_json(result: dict, study: str) -> dict:
    """Return what a run has made of a study, and its report."""
    from tokenuq_pipeline.runtime.bucket_store import open_store

    store = open_store()
    made = {"study": study, **{key: value for key, value in result.items() if key != "made"}}
    return made | {"report": report_as_json(store, study) if result["exit_code"] == 0 else None}


def run_one(
    config,
    study: str,
    ablations: list[str],
    ignore_disk_space: bool = False,
    shows_report: bool = True,
    output: Output | None = None,
) -> int:
    """Bring one study of a configuration up to date, in definitions of its own; return the exit code.

    Args:
        config: all of it.
        study: name of the study.
        ablations: as in `run_study`.
        ignore_disk_space: run although a disk has less space than the estimate.
        shows_report: print the table of its report.
        output: what is printed.

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
        where = here.defs, here.config, study, ablations, here.instance, here.store
        return run_study(*where, check, True, in_steps, shows_report, output)


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
    output: Output | None = None,
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
        output: what is printed.

    Raises:
        InputError: the study has no such ablation, or `check` raises it.
    """
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.commands.plan_rows import estimates_of
    from tokenuq_pipeline.runtime.console import CONSOLE

    output = output or Output()
    runner = StudyRunner(defs, config, study, instance, store, CONSOLE, before_first_wave=check, preload=preload)
    estimate = partial(estimates_of, config=config, study=study, store=store)
    code = make(runner, runner.targets(ablations), not ablations, in_steps, output, estimate)
    if code == 0 and shows_report:
        print_report(store, study, output.say)
    return code


def print_report(store, study: str, say: Callable[[str], None] = print_on) -> None:
    """Print the table of families or ablations as it was last built, and the path of the page.

    Raises:
        InputError: a file of the report is damaged.
    """
    from tokenuq_ml.reports.text import report_text

    folder = _report_folder(store, study)
    table = report_text(folder)
    if table:
        say("\n" + table)
    if (folder / "report.html").is_file():
        say(f"\nreport: {folder / 'report.html'}")


def report_as_json(store, study: str) -> dict | None:
    """Return the tables of a report and the path of its page; None if it was never built.

    Raises:
        InputError: a file of the report is damaged.
    """
    from tokenuq_ml.json_files import read_json

    folder = _report_folder(store, study)
    if not (folder / "report.html").is_file():
        return None
    tables = {"models": folder / "ablation_table.json", "families": folder / "family_table.json"}
    rows = {name: read_json(path) if path.is_file() else [] for name, path in tables.items()}
    return {"page": str(folder / "report.html"), **rows}


def _report_folder(store, study: str) -> Path:
    from tokenuq_pipeline.assets.ablation_report import report_path
    from tokenuq_pipeline.runtime.repair import require_undamaged

    require_undamaged(store, f"{study}/ablation_report")
    return store.path(report_path(study))
