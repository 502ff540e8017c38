"""How a run is shown while it works: as plain lines, for logs and CI. `live_view.py` shows it on a terminal."""

import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Protocol, Self, TextIO

from tokenuq_ml.background import looking
from tokenuq_ml.progress import measured
from tokenuq_pipeline.runtime.console import INDENT, Console, shown_message
from tokenuq_pipeline.runtime.run_progress import RunProgress, State, about, in_words

LOOK_S = 5.0
PROGRESS_S, SILENCE_S, LONGEST_S, SHARE = 10.0, 60.0, 600.0, 0.1
"""Seconds between two progress lines of an asset, seconds of silence after which a line says that it still runs, and
the most of both. They grow to a share of the time that the asset has run, so that days do not fill a log."""


class RunView(Protocol):
    """Shows the runs of one command. A context manager around them.

    Attributes:
        console: prints other lines.
        progress: what the runs have done and will do.
        names_assets: several assets are made at once.
    """

    console: Console
    progress: RunProgress
    names_assets: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def plan(self, names: Collection[str]) -> None:
        """Note what the next run makes."""

    def start(self, name: str) -> None:
        """Show that the work on an asset begins."""

    def hear(self, name: str, level: int, message: str) -> None:
        """Show a log message of an asset, or leave it out."""

    def line(self, text: str, name: str = "") -> None:
        """Print a line about an asset."""

    def finish(self, name: str, seconds: float) -> None:
        """Show that an asset is made."""

    def fail(self, name: str, blocked: Iterable[str] = ()) -> None:
        """Show that an asset, or the run, has failed, and what is not made because of it."""

    def leave(self) -> None:
        """Keep what is shown where it is: the user has stopped the run."""


class LineView:
    """Prints a heading as each asset starts, some of its messages, and its time as it ends.

    If several assets are made at once, each line names its own.
    """

    def __init__(self, console: Console, progress: RunProgress | None = None):
        self.console, self.progress = console, progress or RunProgress()
        self.names_assets = False
        self._planned = self._number = 0
        self._failed: list[str] = []
        self._printed: dict[str, float] = {}
        self._lock, self._stack = threading.RLock(), ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(looking(self._look, LOOK_S, "heartbeat"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plan(self, names: Collection[str]) -> None:
        """Note what the next run makes."""
        with self._lock:
            self.progress.plan(names)
            self._planned, self._number = len(names), 0

    def start(self, name: str) -> None:
        """Print the heading of an asset."""
        with self._lock:
            for failed in self._failed:
                self.console.line(f"without {failed}, which stopped (the reason is printed at the end):")
            self._failed = []
            self.progress.start(name)
            self._number += 1
            self._printed[name] = self.progress.clock()
            left = self.progress.seconds_to_go()
            to_go = f"  ({about(left)} to go)" if left and self._number > 1 else ""
            self.console.line(f"[{self._number:>2}/{self._planned}] {name}{to_go}")

    def hear(self, name: str, level: int, message: str) -> None:
        """Print a log message of an asset, or leave it out; of its progress, less and less."""
        if (text := shown_message(level, message)) is None:
            return
        with self._lock:
            self.progress.hear(name, text)
            if level < logging.WARNING and (found := measured(text)) is not None:
                if not self._is_due(name, PROGRESS_S) or found.done >= found.total:
                    return
                self._printed[name] = self.progress.clock()
            self.line(text, name)

    def line(self, text: str, name: str = "") -> None:
        """Print a line about an asset that works."""
        # Messages of stages about their progress begin with it by themselves.
        prefix = f"{name}: " if self.names_assets and name and not text.startswith(name) else ""
        self.console.line(f"{prefix}{text}", INDENT)

    def finish(self, name: str, seconds: float) -> None:
        """Print that an asset is made."""
        with self._lock:
            self.progress.finish(name, seconds)
            self.console.line(f"{name} done in {seconds:.0f} s", INDENT)

    def fail(self, name: str, blocked: Iterable[str] = ()) -> None:
        """Note that an asset, or the run, has failed. The reason is printed at the end."""
        with self._lock:
            self.progress.fail([name], blocked)
            if self.names_assets:
                self.console.line(f"{name} stopped (the reason is printed at the end)", INDENT)
            else:
                self._failed.append(name)

    def leave(self) -> None:
        """Keep what is shown where it is: the user has stopped the run."""

    def _is_due(self, name: str, least: float) -> bool:
        asset, now = self.progress.assets.get(name), self.progress.clock()
        if asset is None or asset.state != State.RUNNING:
            return True
        return now - self._printed.get(name, asset.began) >= min(max(least, SHARE * (now - asset.began)), LONGEST_S)

    def _look(self) -> bool:
        """Say of each asset that has been silent that it still runs."""
        with self._lock:
            for asset in self.progress.of(State.RUNNING):
                if self._is_due(asset.name, SILENCE_S):
                    now = self.progress.clock()
                    self._printed[asset.name] = now
                    self.line(f"{asset.name}: still running, for {in_words(now - asset.began)}")
        return False


def why_plain(stream: TextIO, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return why a stream gets plain lines; None if it is a terminal on which a live view can be drawn."""
    if not stream.isatty():
        return "no terminal"
    if environment.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return "TERM is dumb"
    # By convention, not empty; it asks for no colour, and whoever sets it reads lines.
    return next((f"{name} is set" for name in ("NO_COLOR", "CI") if environment.get(name)), None)
