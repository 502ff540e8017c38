"""`tokenuq run`: bring a study up to date, and print its table. The work is `runs.py`'s."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenuq_pipeline.commands import FAILED, INTERRUPTED
from tokenuq_pipeline.commands.common import project

ABLATION_HELP = (
    "only this ablation's student, evaluation and curriculum, and what they need; may be given more than once. "
    "The report is rebuilt as well where everything else that it shows is up to date; otherwise it is left as it was"
)


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "run",
        help="bring a study up to date",
        description="Runs the study's Dagster job for what is missing or stale, and prints the ablation table. "
        "Stopped with Ctrl-C, the same command goes on from the last checkpoint.",
    )
    parser.add_argument("--study", required=True, metavar="STUDY", help="a name of studies.yaml")
    parser.add_argument("--ablation", action="append", nargs="+", metavar="NAME", help=ABLATION_HELP)
    parser.set_defaults(function=run_command)


def run_command(options: argparse.Namespace) -> int:
    """`tokenuq run`."""
    # A flag given twice and a flag with two names mean the same.
    ablations = [name for names in options.ablation or [] for name in names]
    with project() as here:
        (study,) = here.studies(options.study)
        return run_study(here.defs, here.config, study, ablations, here.instance, here.store)


def run_study(defs, config, study: str, ablations: list[str], instance, store) -> int:
    """Bring the study up to date and print how it went; returns the exit code.

    Raises:
        InputError: an ablation is not the study's.
    """
    from tokenuq_pipeline.automation.study_runner import Interrupted, RunFailed, StudyRunner
    from tokenuq_pipeline.runtime.instance import prepare
    from tokenuq_pipeline.runtime.logs import CONSOLE

    runner = StudyRunner(defs, config, study, instance, store, CONSOLE)
    keys = runner.targets(ablations)
    with quiet_streams(CONSOLE):
        for line in prepare(instance):
            CONSOLE.line(line)
        store.clean_staging()
        CONSOLE.line(f"study {study}: results in {store.home}, runs in {os.environ.get('DAGSTER_HOME', 'memory')}")
        code = 0
        try:
            runner.bring_up_to_date(keys)
            if ablations:
                waits = runner.report_waits(keys)
                if waits:
                    names = ", ".join(sorted(key.to_user_string() for key in waits))
                    CONSOLE.line(f"the report is left as it was: not up to date are {names}")
                else:
                    runner.bring_up_to_date(keys | {runner.report})
        except RunFailed as failure:
            CONSOLE.line(f"stopped: {failure}; what is done stays done, run the same command again after the mend")
            code = FAILED
        except (Interrupted, KeyboardInterrupt):
            CONSOLE.line("stopped; run the same command again: it goes on from the last checkpoint")
            return INTERRUPTED
    if runner.made:
        print("\n" + time_table(runner.made))
    elif code == 0:
        print("up to date: nothing to recompute")
    if code == 0:
        print_report(store, study)
    return code


def time_table(made: list) -> str:
    """Wall time and peak memory of what was made."""
    width = max(len("asset"), *(len(asset.name) for asset in made))
    lines = [f"{'asset':<{width}}  {'wall time':>9}  {'peak memory':>11}"]
    for asset in made:
        memory = f"{asset.peak_memory_mib:,.0f} MiB" if asset.peak_memory_mib else ""
        lines.append(f"{asset.name:<{width}}  {asset.seconds:>7.1f} s  {memory:>11}")
    lines.append(f"{'together':<{width}}  {sum(asset.seconds for asset in made):>7.1f} s")
    return "\n".join(lines)


def print_report(store, study: str) -> None:
    """The table of families or ablations as it was last built, and where the page is."""
    from tokenuq_ml.reports.text import report_text
    from tokenuq_pipeline.assets.ablation_report import report_path

    folder: Path = store.path(report_path(study))
    table = report_text(folder)
    if table:
        print("\n" + table)
    if (folder / "report.html").is_file():
        print(f"\nreport: {folder / 'report.html'}")


@contextlib.contextmanager
def quiet_streams(console) -> Iterator[None]:
    """The console keeps the terminal; whatever else is written to it meanwhile goes to Dagster's captured logs only.

    Dagster echoes what it captures, progress bars of libraries and all.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(os.devnull, os.O_WRONLY)
    before = console.stream, console.shows_events
    try:
        # A stream that a test or a caller has put in place of the terminal's is left as it is.
        console.stream = os.fdopen(os.dup(kept[0]), "w") if before[0] is None else before[0]
        console.shows_events = False
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(sink)
        if before[0] is None and console.stream is not None:
            console.stream.close()
        console.stream, console.shows_events = before
