"""`tokenuq run`: bring a study up to date, and print its table."""

import argparse
import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import FAILED, INTERRUPTED
from tokenuq_pipeline.commands.common import STUDY_HELP, configuration, known_studies, project
from tokenuq_pipeline.commands.disk_space import OVERRIDE
from tokenuq_pipeline.runtime.paths import dagster_home
from tokenuq_pipeline.runtime.readers import READER_LEFT, is_gone, print_on, replace_output

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
        InputError: the study has no such ablation, or a disk has too little space.
    """
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.commands.run_steps import recipe
    from tokenuq_pipeline.runtime.trash import Trash

    # Of this study only: what is asked of all studies of a large grid takes seconds each time.
    with project(study, config=config_of(config, [study])) as here:
        # Before the disk space is looked at; each stage does it too, for runs from the UI.
        Trash(here.store.home).empty_old()
        check = None if ignore_disk_space else partial(check_disk_space, here, study)
        in_steps = recipe(here.config, here.store, study)
        return run_study(
            here.defs, here.config, study, ablations, here.instance, here.store, check, True, in_steps, shows_report
        )


def check_disk_space(here, study: str, assets: list[str]) -> None:
    """Check that the disks have the space for what is to be made; the `check` of `run_study`.

    Raises:
        DiskFull: a disk has too little.
    """
    from tokenuq_pipeline.commands.plan_rows import check_disk_space

    check_disk_space(here.config, study, assets, here.store)


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


def make(runner, keys: set, with_report: bool = True, in_steps=None) -> int:
    """Bring `keys` up to date, print progress, times and errors, and return the exit code.

    Args:
        runner: a `StudyRunner`.
        keys: what to make.
        with_report: `keys` holds the report, if it is wanted. Otherwise it is made if its other inputs are up to date.
        in_steps: as in `run_study`.
    """
    began = time.monotonic()
    with quiet_streams(runner.console):
        code, errors = _bring_up_to_date(runner, keys, with_report, in_steps)
    if code == INTERRUPTED:
        return code
    if runner.timings:
        print_on("\n" + time_table(runner.timings, time.monotonic() - began if runner.recipe else None))
    elif code == 0:
        print_on("up to date: nothing to recompute")
    for error in errors:
        # Last, so that it stands above the next prompt.
        print_on("\n" + escaped(redacted(error)))
    return code


def _bring_up_to_date(runner, keys: set, with_report: bool, in_steps=None) -> tuple[int, list[str]]:
    """Make `keys`, then the report if its other inputs are up to date; return the exit code, and the errors to print.

    Args:
        runner: of the study.
        keys: what to make.
        with_report: `keys` holds the report already.
        in_steps: as in `run_study`.
    """
    from tokenuq_pipeline.automation.study_runner import Interrupted, RunFailed
    from tokenuq_pipeline.runtime.bucket_store import address_of
    from tokenuq_pipeline.runtime.instance import prepare, slots
    from tokenuq_pipeline.runtime.step_processes import steps_side_by_side

    console, store = runner.console, runner.store
    for line in prepare(runner.instance, store.home):
        console.line(line)
    if steps_side_by_side(slots(runner.instance) > 1):
        runner.recipe = in_steps
    store.clean_staging()
    runs = os.environ.get("DAGSTER_HOME", "memory")
    console.line(f"{runner.title}: results in {address_of(store)}, runs in {runs}")
    try:
        runner.bring_up_to_date(keys)
        if not with_report:
            stale = runner.stale_report_inputs(keys)
            if stale:
                names = ", ".join(sorted(key.to_user_string() for key in stale))
                console.line(f"the report is not rebuilt, because these are not up to date: {names}")
            else:
                runner.bring_up_to_date(keys | {runner.report})
    except RunFailed as failure:
        console.line(f"stopped: {failure}; finished assets are kept, run the same command again after fixing the cause")
        return FAILED, failure.errors
    except (Interrupted, KeyboardInterrupt):
        console.line("stopped; run the same command again to resume from the last checkpoint")
        return INTERRUPTED, []
    return 0, []


def time_table(timings: list, elapsed: float | None = None) -> str:
    """Return wall time and peak memory of each asset as a table.

    Args:
        timings: one `AssetTiming` per asset.
        elapsed: seconds of the command, if assets were made side by side.
    """
    width = max(len("asset"), *(len(asset.name) for asset in timings))
    lines = [f"{'asset':<{width}}  {'wall time':>9}  {'peak memory':>11}"]
    for asset in timings:
        memory = f"{asset.peak_memory_mib:,.0f} MiB" if asset.peak_memory_mib else ""
        lines.append(f"{asset.name:<{width}}  {asset.seconds:>7.1f} s  {memory:>11}")
    lines.append(f"{'total':<{width}}  {sum(asset.seconds for asset in timings):>7.1f} s")
    if elapsed is not None:
        lines.append(f"{'elapsed':<{width}}  {elapsed:>7.1f} s")
    return "\n".join(lines)


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


@contextlib.contextmanager
def quiet_streams(console) -> Iterator[None]:
    """Let only `console` write to the terminal; other output goes to the logs that Dagster captures.

    Dagster echoes what it captures, including progress bars of libraries. It also prints that it cannot log, on a full
    disk, and a step that an error has left suspended logs until it is closed. So it is closed here: the error is
    printed after that, and nothing follows it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(os.devnull, os.O_WRONLY)
    before = console.stream, console.shows_events
    # A stream that a test or a caller has set stays.
    streams = [os.fdopen(os.dup(descriptor), "w") for descriptor in kept] if before[0] is None else []
    try:
        if streams:
            console.stream, console.other_stream = streams
        console.shows_events = False
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield
    except BaseException as error:
        _close_what_is_suspended(error)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(sink)
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.close()
        if console.has_lost_stream or is_gone(1):
            # First, because standard error may have had the same reader (`2>&1 | head -3`).
            replace_output()
            if not console.has_lost_stream:
                print(READER_LEFT, file=sys.stderr)
        console.stream, console.shows_events = before
        console.other_stream, console.has_lost_stream = None, False


def _close_what_is_suspended(error: BaseException | None) -> None:
    """Close the generators that the frames of an error hold, which would be closed when the error is forgotten.

    The lines of its traceback stay; the local variables of the frames do not.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    # Some are held in cycles.
    gc.collect()
