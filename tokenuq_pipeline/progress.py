"""One compact line an event for people at a terminal: which asset, how far, how long to go.

A Dagster logger; knows the events of a run, not what the assets are.
"""

import logging
import sys
import time

import dagster as dg


class ProgressHandler(logging.Handler):
    """Prints headings as assets start, their children's progress lines, and what went wrong."""

    def __init__(self, stream=None):
        super().__init__(logging.DEBUG)
        self.stream = stream or sys.stdout
        self.total = self.started = 0
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._step_began = 0.0

    def expect(self, assets: int) -> None:
        """How many assets the coming run makes."""
        self.total, self.started = assets, 0

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {}) or {}
        event = meta.get("dagster_event")
        if event is None:
            if record.levelno >= logging.INFO:
                self._say(f"    {meta.get('orig_message') or record.getMessage()}")
            return
        kind = event.event_type_value
        if kind == "STEP_START":
            self._step_began = time.monotonic()
        elif kind == "ASSET_MATERIALIZATION":
            self._materialised(event)
        elif kind == "ASSET_CHECK_EVALUATION":
            check = event.asset_check_evaluation_data
            if not check.passed:
                word = "WARNING" if check.severity == dg.AssetCheckSeverity.WARN else "CHECK FAILED"
                self._say(f"    {word} {check.asset_key.to_user_string()}: {check.check_name}: {check.description}")
        elif kind == "STEP_FAILURE":
            data = event.step_failure_data
            reason = data.user_failure_data.description if data.user_failure_data else data.error_display_string
            self._say(f"    FAILED {event.step_key}: {reason}")

    def _materialised(self, event: dg.DagsterEvent) -> None:
        materialization = event.step_materialization_data.materialization
        label = materialization.asset_key.to_user_string()
        now = time.monotonic()
        self.seconds[label] = now - self._step_began
        self._step_began = now
        self.started += 1
        self._say(f"[{self.started}/{self.total}] {label} is done in {self.seconds[label]:.1f} s")

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self.began
        print(f"{int(elapsed // 60):3d}:{int(elapsed % 60):02d}  {text}", file=self.stream, flush=True)


def progress_logger(handler: ProgressHandler) -> dg.LoggerDefinition:
    """A Dagster logger that hands everything to `handler`."""

    @dg.logger(description="Compact progress for the command line.")
    def progress(_):
        logger = logging.Logger("tokenuq")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
        return logger

    return progress
