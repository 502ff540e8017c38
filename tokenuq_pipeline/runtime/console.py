"""What a run prints on the console: one short line per event, time first.

Dagster's own console logger prints every engine event in full. This one only selects what is printed; the event log
holds everything.
"""

import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO
from weakref import WeakValueDictionary

import dagster as dg

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.runtime.failures import Failures, RunPlan
from tokenuq_pipeline.runtime.readers import why_lost

SHOWN_EVENTS = {
    "STEP_START",
    "STEP_SUCCESS",
    "ASSET_MATERIALIZATION",
    "RUN_START",
    "RUN_SUCCESS",
    "PIPELINE_START",
    "PIPELINE_SUCCESS",
}
RUN_FAILURES = {"RUN_FAILURE", "PIPELINE_FAILURE"}
NOT_EXECUTED = re.compile(
    r"Dependencies for step .* Not executing\.|Step \S+ finished without success or failure event\..*", re.DOTALL
)
"""What Dagster logs as an error for every step after a failed one, and for one whose process could not build the job.
The failure itself is printed, with their number."""
CONSOLE_CONFIG: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""The run configuration that uses `compact_logger`; without it Dagster falls back to its own logger."""
INDENT = "         "
"""Puts a line below the heading of its asset."""


class Console:
    """Where lines are printed. `tokenuq run` gives it another stream and prints the events itself.

    Attributes:
        stream: where; None: standard error.
        other_stream: where lines go from then on if `stream` cannot be written any more; None: nowhere. A computation
            of hours does not end because nobody reads its lines.
        has_lost_stream: whether that has happened.
        above: prints a line instead, above what is drawn on the terminal; raises OSError if the terminal is gone.
        shows_events: whether the console logger prints the events of runs; else `tokenuq run` does.
        hears: gets the messages of stages, with level and step, in place of the console; None: the console prints them.
    """

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self.other_stream: TextIO | None = None
        self.has_lost_stream = False
        self.above: Callable[[str], None] | None = None
        self.shows_events = True
        self.hears: Callable[[int, str, str | None], None] | None = None

    def line(self, text: str, indent: str = "") -> None:
        """Print `text` after the time of day; its further lines are aligned with the first."""
        now = time.strftime("%H:%M:%S")
        for number, part in enumerate(escaped(redacted(text.rstrip())).split("\n")):
            self._print(f"{now if number == 0 else ' ' * len(now)}  {indent}{part}")

    def _print(self, line: str) -> None:
        try:
            if self.above is not None:
                self.above(line)
            else:
                print(line, file=self.stream or sys.stderr, flush=True)
        except OSError as error:
            self.above = None
            if self.has_lost_stream or self.other_stream is None:
                return
            self.has_lost_stream, self.stream = True, self.other_stream
            self._print(f"{why_lost(error)}: the run goes on, and its lines follow here; Ctrl-C stops it")
            self._print(line)


CONSOLE = Console()
"""The console of this process."""
_FAILURES: WeakValueDictionary[str, Failures] = WeakValueDictionary()
"""Run -> its failures. Dagster makes a logger for the run and another for its steps."""


class CompactHandler(logging.Handler):
    """Prints messages of stages and warnings; unless `tokenuq run` does, also steps, and failures as the run ends."""

    def __init__(self, failures: Failures):
        """Start a handler that notes the run's failures in `failures`."""
        super().__init__()
        self._failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or leave it out."""
        try:
            meta = getattr(record, "dagster_meta", {})
            event, step = meta.get("dagster_event"), meta.get("step_key")
            if event is None:
                self._message(record, str(meta.get("orig_message") or record.getMessage()), step)
            elif CONSOLE.shows_events:
                self._event(event, str(meta.get("orig_message") or event.event_type_value), step)
        except Exception:
            self.handleError(record)

    def _event(self, event: dg.DagsterEvent, message: str, step: str | None) -> None:
        failed = self._failures.see(event) is not None
        if event.event_type_value in SHOWN_EVENTS:
            CONSOLE.line(message, f"{step}: " if step else "")
        elif event.event_type_value in RUN_FAILURES:
            for error in self._failures.errors() or [message]:
                CONSOLE.line(error)
        elif failed and not self._failures.sees_run:
            # A step in a process of its own, which does not see the end of the run either.
            CONSOLE.line(self._failures.errors()[-1])

    def _message(self, record: logging.LogRecord, message: str, step: str | None) -> None:
        if CONSOLE.hears is not None:
            CONSOLE.hears(record.levelno, message, step)
        elif (text := shown_message(record.levelno, message)) is not None:
            CONSOLE.line(text, INDENT if not CONSOLE.shows_events else f"{step}: " if step else "")


def shown_message(level: int, message: str) -> str | None:
    """Return what is printed of a log message; None if it is left out."""
    if level < logging.INFO or message.startswith("[pipes]") or NOT_EXECUTED.fullmatch(message):
        return None
    return f"{logging.getLevelName(level).lower()}: {message}" if level >= logging.WARNING else message


@dg.logger({}, description="One line per event.")
def compact_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the console logger of every job."""
    # Dagster logs its own events as DEBUG, so the handler filters instead of the level.
    logger = logging.Logger("tokenuq", level=logging.DEBUG)
    logger.addHandler(CompactHandler(_failures_of(context)))
    return logger


def _failures_of(context: dg.InitLoggerContext) -> Failures:
    """Return where the loggers of a run note its failures."""
    run, job = context.run_id or "", context.job_def
    failures = _FAILURES.get(run) or Failures(RunPlan({}, {}) if job is None else RunPlan.of_job(job))
    _FAILURES[run] = failures
    return failures
