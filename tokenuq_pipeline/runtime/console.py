"""What a run prints on the console: one short line per event, time first.

Dagster's own console logger prints every engine event in full. This one only selects what is printed; the event log
holds everything.
"""

import logging
import sys
import time
from typing import Any, TextIO

import dagster as dg

SHOWN_EVENTS = {
    "STEP_START",
    "STEP_SUCCESS",
    "STEP_FAILURE",
    "ASSET_MATERIALIZATION",
    "RUN_START",
    "RUN_SUCCESS",
    "RUN_FAILURE",
    "PIPELINE_START",
    "PIPELINE_SUCCESS",
    "PIPELINE_FAILURE",
}
CONSOLE_CONFIG: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""The run configuration that uses `compact_logger`; without it Dagster falls back to its own logger."""
INDENT = "         "
"""Puts a line below the heading of its asset."""


class Console:
    """Where lines are printed. `tokenuq run` gives it another stream and prints the events itself."""

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self.shows_events = True

    def line(self, text: str, indent: str = "") -> None:
        """Print `text` after the time of day; its further lines are aligned with the first."""
        stream = self.stream or sys.stderr
        now = time.strftime("%H:%M:%S")
        for number, part in enumerate(text.splitlines() or [""]):
            print(f"{now if number == 0 else ' ' * len(now)}  {indent}{part}", file=stream, flush=True)


CONSOLE = Console()
"""The console of this process."""


class CompactHandler(logging.Handler):
    """Prints messages of stages, warnings, and (unless `tokenuq run` does) the start and end of steps."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or leave it out."""
        try:
            meta = getattr(record, "dagster_meta", {})
            event, step = meta.get("dagster_event"), meta.get("step_key")
            if event is None:
                self._message(record, str(meta.get("orig_message") or record.getMessage()), step)
            elif CONSOLE.shows_events and event.event_type_value in SHOWN_EVENTS:
                CONSOLE.line(str(meta.get("orig_message") or event.event_type_value), f"{step}: " if step else "")
        except Exception:
            self.handleError(record)

    def _message(self, record: logging.LogRecord, message: str, step: str | None) -> None:
        if record.levelno < logging.INFO or message.startswith("[pipes]"):
            return
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        indent = INDENT if not CONSOLE.shows_events else f"{step}: " if step else ""
        CONSOLE.line(f"{level}{message}", indent)


@dg.logger({}, description="One line per event.")
def compact_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the console logger of every job."""
    # Dagster logs its own events as DEBUG, so the handler filters instead of the level.
    logger = logging.Logger("tokenuq", level=logging.DEBUG)
    logger.addHandler(CompactHandler())
    return logger
