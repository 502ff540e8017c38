"""Runs one entry point as a process: request in, results out, a clean end whatever happens.

Speaks to Dagster through Pipes when started under it, to the terminal otherwise. Does not
know what the stage computes. Exit codes: 0 done, 2 bad input, 130 interrupted, 1 a bug.
"""

import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.provenance import package_versions
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest

PARENT_PIPE = "TOKENUQ_PARENT_PIPE"
"""Names the file descriptor of a pipe whose other end only the parent holds."""
ORPHAN_GRACE_S = 30.0

BAD_INPUT, INTERRUPTED, BUG = 2, 130, 1


def with_usage(result: AssetResult, started: float, tokens: int = 0) -> AssetResult:
    """Adds to the metrics what the result took, and to the result what it was computed with.

    `seconds` since `started`, `peak_memory_mib` of the process so far, `tokens_per_second` where tokens were counted,
    and for stages without a model the `device` and `precision` that they have all the same.
    """
    seconds = time.monotonic() - started
    usage = {"seconds": round(seconds, 2), "peak_memory_mib": round(peak_memory_mib())}
    if tokens:
        usage["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
    metrics = {"device": "cpu", "precision": "no model", **result.metrics, **usage}
    return result.model_copy(update={"metrics": metrics, "packages": package_versions()})


def with_numerics(result: AssetResult) -> AssetResult:
    """The data version with the resolved device and precision, of a result that was computed with a model.

    Two machines may resolve `precision: auto` otherwise: what they make is then told apart by more than its digits.
    """
    numerics = [str(result.metrics[key]) for key in ("device", "precision") if key in result.metrics]
    return result.model_copy(update={"data_version": "-".join([result.data_version, *numerics])})


def peak_memory_mib() -> float:
    """The largest resident size that this process has had."""
    try:
        # Linux keeps ru_maxrss over exec: of a small child it would tell the parent's peak.
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


class _Usage:
    """What both reporters keep between two results: since when, and how many tokens."""

    def __init__(self):
        self._since, self._tokens = time.monotonic(), 0

    def count_tokens(self, tokens: int) -> None:
        self._tokens += tokens

    def _complete(self, result: AssetResult) -> AssetResult:
        result = with_usage(with_numerics(result), self._since, self._tokens)
        self._since, self._tokens = time.monotonic(), 0
        return result


class PipesReporter(_Usage):
    """Reports to the Dagster run that launched this process."""

    def __init__(self, pipes: PipesContext):
        super().__init__()
        self._pipes = pipes

    def info(self, message: str) -> None:
        self._pipes.log.info(message)

    def warning(self, message: str) -> None:
        self._pipes.log.warning(message)

    def done(self, result: AssetResult) -> None:
        result = self._complete(result)
        self._pipes.report_custom_message({"kind": "result", "result": result.model_dump(mode="json")})

    def bad_input(self, message: str) -> None:
        self._pipes.report_custom_message({"kind": "bad_input", "message": message})


class TerminalReporter(_Usage):
    """Prints, for a stage that is run by hand."""

    def info(self, message: str) -> None:
        print(message, flush=True)

    warning = info

    def done(self, result: AssetResult) -> None:
        result = self._complete(result)
        print(result.model_dump_json(indent=1), flush=True)

    def bad_input(self, message: str) -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)


def main(run: Callable[[StageRequest, StageReporter], None]) -> None:
    """Run `run` on the request named by the first argument, and exit."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tokenuq_ml.stages.<name> REQUEST.json")
    # A shell that starts us in the background has SIGINT ignored, and the child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    orphaned = _end_with_parent()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if DAGSTER_PIPES_CONTEXT_ENV_VAR in os.environ:
        with open_dagster_pipes() as pipes:
            code = _run(run, PipesReporter(pipes))
    else:
        code = _run(run, TerminalReporter())
    sys.stdout.flush()
    sys.stderr.flush()
    if orphaned.is_set():
        _kill_group()
    # Skips the interpreter's teardown, which takes seconds with torch loaded and can no longer change the outcome.
    os._exit(code)


def _run(run: Callable, reporter) -> int:
    try:
        run(StageRequest.read(sys.argv[1]), reporter)
    except InputError as error:
        reporter.bad_input(str(error))
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        reporter.info(str(interrupt) or "stopped")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BUG
    return 0


def _end_with_parent() -> threading.Event:
    """Stops this process when the parent is gone: its end of the pipe closes, however it died.

    Returns what is set from then on.
    """
    orphaned = threading.Event()
    if PARENT_PIPE not in os.environ:
        return orphaned
    descriptor = int(os.environ[PARENT_PIPE])

    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        orphaned.set()
        # As a person's Ctrl-C: training writes a checkpoint; what does not end by itself is ended.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(ORPHAN_GRACE_S)
        _kill_group()
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
    return orphaned


def _kill_group() -> None:
    """Kills this process with all that it started, where the launcher gave it a group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
