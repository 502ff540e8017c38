"""Runs one stage as a process: reads the request, reports the results, and ends cleanly.

Reports through Dagster Pipes if Dagster started the process, and to the terminal otherwise. Exit codes: 0 done, 2 bad
input, 12 no memory, 28 no space on a disk, 75 the parent was silent, 130 interrupted, 1 a bug.

Under torchrun, rank 0 alone reports. The others say only why they fail (`rank_failures.py`), and have nothing to do in
a stage that is not of `PARALLEL_STAGES`.
"""

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_pipes import (
    DAGSTER_PIPES_CONTEXT_ENV_VAR,
    DAGSTER_PIPES_MESSAGES_ENV_VAR,
    PipesContext,
    encode_param,
    open_dagster_pipes,
)

from tokenuq_ml import process_group
from tokenuq_ml.disk import DiskFull
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import redact_output, redacted
from tokenuq_ml.stages.failures import NO_SPACE, known_failure, name_of, release_reserve
from tokenuq_ml.stages.input_files import verify_inputs
from tokenuq_ml.stages.parent_watch import PARENT_PIPE, ParentWatch, die_with_parent, kill_group
from tokenuq_ml.stages.rank_failures import write_failure
from tokenuq_ml.stages.reporters import RankReporter, TerminalReporter, Usage, peak_memory_mib
from tokenuq_ml.stages.request import PARALLEL_STAGES, AssetResult, StageReporter, StageRequest

BAD_INPUT, INTERRUPTED, BUG, PARENT_SILENT = 2, 130, 1, 75
THREADS = "TOKENUQ_THREADS"
"""Environment variable: the threads of each process of a stage; default: those that PyTorch chooses."""


class PipesReporter(Usage):
    """Reports to the Dagster run that launched this process."""

    def __init__(self, pipes: PipesContext):
        super().__init__()
        self._pipes = pipes

    def info(self, message: str) -> None:
        """Log a message in the run."""
        self._pipes.log.info(redacted(message))

    def warning(self, message: str) -> None:
        """Log a warning in the run."""
        self._pipes.log.warning(redacted(message))

    def done(self, result: AssetResult) -> None:
        """Send the result to the run."""
        result = self.complete(result)
        self._pipes.report_custom_message({"kind": "result", "result": result.model_dump(mode="json")})

    def bad_input(self, message: str) -> None:
        """Send the error to the run, which then fails without a retry."""
        self._pipes.report_custom_message({"kind": "bad_input", "message": redacted(message)})


def main(run: Callable[[StageRequest, StageReporter], None]) -> None:
    """Call `run` with the request that the first argument names, and exit."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tokenuq_ml.stages.<name> REQUEST.json")
    # A process that a shell starts in the background inherits an ignored SIGINT.
    _set_handlers(signal.default_int_handler)
    redact_output()
    if process_group.launched_processes() > 1:
        # By torchrun, and by a cluster that stops the job.
        _set_handlers(_interrupt_once)
        die_with_parent()
    elif PARENT_PIPE in os.environ:
        # By the launcher, and by the end of the launcher. It kills the stage if it shall stop at once.
        _set_handlers(_interrupt_once)
    parent = ParentWatch.start()
    warnings.filterwarnings("ignore", category=FutureWarning)
    code = _run_and_report(run)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if parent.orphaned.is_set():
        kill_group()
    if parent.silent.is_set() and code == INTERRUPTED:
        code = PARENT_SILENT
    # Skip the interpreter's teardown, which takes seconds with torch loaded.
    os._exit(code)


def _interrupt_once(number: int, frame: object) -> None:
    """Interrupt the stage, and let it write what it has: whoever wants it to stop at once kills it."""
    _set_handlers(signal.SIG_IGN)
    raise KeyboardInterrupt


def _set_handlers(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _use_threads() -> None:
    """Set the number of threads, if the environment says it and this stage has loaded PyTorch.

    Raises:
        InputError: the environment variable is no number from 1.
    """
    threads, torch = os.environ.get(THREADS), sys.modules.get("torch")
    if not threads:
        return
    if not threads.isascii() or not threads.isdigit() or int(threads) < 1:
        raise InputError(f"{THREADS} is {threads!r}; set it to a number from 1")
    if torch is not None:
        torch.set_num_threads(int(threads))


def _run_and_report(run: Callable) -> int:
    """Call `run` as this rank, and return the exit code."""
    if process_group.launched_rank() > 0:
        return _run(run, RankReporter())
    return _with_reporter(lambda reporter: _run(run, reporter))


def messages_to(file: Path) -> dict[str, str]:
    """Return the environment of a stage that writes its messages into another file than its launcher has named."""
    return {DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"path": str(file)})}


def report_refusal(message: str, staging: Path, code: int = BAD_INPUT) -> int:
    """Report the sentence that ends a stage from outside of it; return the exit code."""
    release_reserve(staging)

    def report(reporter) -> int:
        reporter.bad_input(message)
        return code

    return _with_reporter(report)


def _with_reporter(function: Callable[..., int]) -> int:
    """Call the function with a reporter, and return the exit code that it returns.

    On a full disk the message file may take nothing more, not even the message that ends it: the code remains.
    """
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        return function(TerminalReporter())
    code = None
    try:
        with open_dagster_pipes() as pipes:
            code = function(PipesReporter(pipes))
    except OSError as error:
        if code is None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return BUG
    return code


def _run(run: Callable, reporter) -> int:
    """Call `run`, report what ended it, and return the exit code."""
    try:
        return _run_to_end(run, reporter)
    except KeyboardInterrupt:
        # It came while the end was reported: torchrun interrupts the ranks that are left when one has failed.
        return INTERRUPTED


def _run_to_end(run: Callable, reporter) -> int:
    request = None
    try:
        request = StageRequest.read(sys.argv[1])
        if request.entrypoint in PARALLEL_STAGES:
            process_group.start()
        elif process_group.launched_rank() > 0:
            return 0
        _use_threads()
        if process_group.is_main():
            verify_inputs(request, reporter)
        process_group.barrier()
        run(request, reporter)
    except InputError as error:
        if isinstance(error, DiskFull) and request is not None:
            return _report(NO_SPACE, f"{name_of(request)}: {error}", reporter)
        return _report(BAD_INPUT, str(error), reporter)
    except KeyboardInterrupt as interrupt:
        reporter.info(str(interrupt) or "stopped")
        return INTERRUPTED
    except Exception as error:
        return _report_failure(error, request, reporter)
    return 0


def _report_failure(error: Exception, request: StageRequest | None, reporter) -> int:
    """Report an error that is not about the input; return the exit code."""
    staging = Path(sys.argv[1]).parent
    found = known_failure(error, request, staging, peak_memory_mib() * 2**20) if request else None
    if found is None:
        if process_group.world_size() == 1 or not write_failure(BUG, error=error):
            traceback.print_exc()
        return BUG
    return _report(*found, reporter)


def _report(code: int, message: str, reporter) -> int:
    """Report the sentence that ends the stage, on a full disk too; return the exit code."""
    release_reserve(Path(sys.argv[1]).parent)
    try:
        if process_group.world_size() > 1:
            with contextlib.suppress(OSError):
                write_failure(code, redacted(message))
        reporter.bad_input(message)
    except OSError:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr, flush=True)
    return code
