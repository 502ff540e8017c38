"""Make assets with progress, times and errors on the console: what `tokenuq run` does for a study or a comparison."""

import argparse
import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import FAILED, INTERRUPTED
from tokenuq_pipeline.commands.json_output import add_json
from tokenuq_pipeline.runtime.readers import READER_LEFT, is_gone, print_on, replace_output

STOPPED = "stopped; run the same command again to resume from the last checkpoint"
PLAIN_HELP = "print plain lines, also on a terminal; default: where there is none, and if CI or NO_COLOR is set"


@dataclass
class Output:
    """What a command that makes assets prints.

    Attributes:
        is_plain: plain lines, also on a terminal.
        as_json: the results as JSON on standard output, and everything else on standard error.
        results: of each `make`, for the JSON.
    """

    is_plain: bool = False
    as_json: bool = False
    results: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Output":
        """Return what the options say."""
        return cls(options.plain, options.json)

    def say(self, text: str) -> None:
        """Print a text, which is no part of the JSON."""
        if self.as_json:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)
        else:
            print_on(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Output`."""
    parser.add_argument("--plain", action="store_true", help=PLAIN_HELP)
    add_json(parser, "print the result as JSON, and progress on standard error")


def make(
    runner, keys: set, with_report: bool = True, in_steps=None, output: Output | None = None, estimate=None
) -> int:
    """Bring `keys` up to date, print progress, times and errors, and return the exit code.

    Args:
        runner: a `StudyRunner`.
        keys: what to make.
        with_report: `keys` holds the report, if it is wanted. Otherwise it is made if its other inputs are up to date.
        in_steps: as in `run_study`.
        output: what is printed.
        estimate: returns what assets take, by name, as in `RunProgress`.
    """
    output = output or Output()
    began = time.monotonic()
    with quiet_streams(runner.console, output.as_json):
        with _view(runner, output, estimate) as runner.view:
            code, errors = bring_up_to_date(runner, keys, with_report, in_steps)
            if code:
                runner.view.leave()
        if code == INTERRUPTED:
            runner.console.line(STOPPED)
    elapsed = time.monotonic() - began
    output.results.append(
        {
            "made": runner.study,
            "exit_code": code,
            "seconds": round(elapsed, 1),
            "assets": [
                {"asset": one.name, "seconds": round(one.seconds, 1), "peak_memory_mib": one.peak_memory_mib}
                for one in runner.timings
            ],
            "errors": [redacted(error) for error in errors] + ([STOPPED] if code == INTERRUPTED else []),
        }
    )
    if code == INTERRUPTED:
        return code
    if runner.timings:
        output.say("\n" + time_table(runner.timings, elapsed if runner.recipe else None))
    elif code == 0:
        output.say("up to date: nothing to recompute")
    for error in errors:
        # Last, so that it stands above the next prompt.
        output.say("\n" + escaped(redacted(error)))
    return code


def _view(runner, output: Output, estimate):
    """Return what shows the runs: a table that is drawn in place on a terminal, else lines."""
    from tokenuq_pipeline.runtime.run_progress import RunProgress
    from tokenuq_pipeline.runtime.run_view import LineView, why_plain

    progress, stream = RunProgress(runner.title, estimate or (lambda names: {})), runner.console.stream
    if output.is_plain or stream is None or why_plain(stream) is not None:
        return LineView(runner.console, progress)
    from tokenuq_pipeline.runtime.live_view import LiveView

    return LiveView(runner.console, progress, stream)


def bring_up_to_date(runner, keys: set, with_report: bool, in_steps=None) -> tuple[int, list[str]]:
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
    if runner.recipe is not None and runner.view is not None:
        runner.view.names_assets, runner.view.progress.parallel = True, slots(runner.instance)
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


@contextlib.contextmanager
def quiet_streams(console, on_stderr: bool = False) -> Iterator[None]:
    """Let only `console` write to the terminal; other output goes to the logs that Dagster captures.

    Dagster echoes what it captures, including progress bars of libraries. It also prints that it cannot log, on a full
    disk, and a step that an error has left suspended logs until it is closed. So it is closed here: the error is
    printed after that, and nothing follows it.

    Args:
        console: what writes.
        on_stderr: to standard error, if it can, because standard output is for a result.
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
            # What nobody reads on standard error must not be in the result.
            console.stream, console.other_stream = (streams[1], None) if on_stderr else streams
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
