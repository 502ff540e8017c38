"""Make assets with progress, times and errors on the console: what `tokenuq run` does for a study or a comparison."""

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import FAILED, INTERRUPTED
from tokenuq_pipeline.runtime.readers import READER_LEFT, is_gone, print_on, replace_output


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
        code, errors = bring_up_to_date(runner, keys, with_report, in_steps)
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
