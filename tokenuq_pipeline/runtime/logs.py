"""What a run says on the console: one short line an event, time first.

Dagster's own console logger writes every engine event in full. Does not decide what is
logged, only what of it is shown; everything stays in the event log.
"""

import logging
import sys
import time
from typing import TextIO

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


class Console:
    """Where lines go. The CLI gives it a stream of its own and says the events itself."""

    def __init__(self):
        self.stream: TextIO | None = None
        self.shows_events = True

    def line(self, text: str, indent: str = "") -> None:
        """Print `text` after the time of day; further lines of it are indented alike."""
        stream = self.stream or sys.stderr
        now = time.strftime("%H:%M:%S")
        for number, part in enumerate(text.splitlines() or [""]):
            print(f"{now if number == 0 else ' ' * len(now)}  {indent}{part}", file=stream, flush=True)


CONSOLE = Console()


class CompactHandler(logging.Handler):
    """Shows what stages say, warnings, and (unless the CLI does) the start and end of steps."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            meta = getattr(record, "dagster_meta", {})
            event, step = meta.get("dagster_event"), meta.get("step_key")
            if event is None:
                if record.levelno < logging.INFO:
                    return
                message = str(meta.get("orig_message") or record.getMessage())
                if message.startswith("[pipes]"):
                    return
                level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
                indent = "         " if not CONSOLE.shows_events else f"{step}: " if step else ""
                CONSOLE.line(f"{level}{message}", indent)
            elif CONSOLE.shows_events and event.event_type_value in SHOWN_EVENTS:
                CONSOLE.line(str(meta.get("orig_message") or event.event_type_value), f"{step}: " if step else "")
        except Exception:
            self.handleError(record)


@dg.logger({}, description="One line an event.")
def compact_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """The console logger of every job."""
    # Dagster logs its own events as DEBUG; the handler sorts them out.
    logger = logging.Logger("tokenuq", level=logging.DEBUG)
    logger.addHandler(CompactHandler())
    return logger
