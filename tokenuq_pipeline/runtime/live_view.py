"""A run on a terminal: one line per asset, redrawn in place, and the time to go. Other lines are printed above.

`run_progress.py` knows what to draw.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.console import ConsoleDimensions
from rich.control import Control
from rich.live import Live
from rich.text import Text

from tokenuq_ml.background import looking
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.runtime.console import Console, shown_message
from tokenuq_pipeline.runtime.live_frame import frame
from tokenuq_pipeline.runtime.run_progress import RunProgress

REFRESH_S = 0.25
SHOW_CURSOR = b"\n\x1b[?25h"
KEPT_LINES = 200
"""Lines above the table that are printed again after the window has become narrower."""


class Terminal(RichConsole):
    """A terminal that is drawn on."""

    def ask_size(self) -> ConsoleDimensions:
        """Ask for its columns and lines, use them, and return them.

        rich would ask standard output, which is another file while a run works.
        """
        columns = lines = 0
        with suppress(OSError, ValueError):
            columns, lines = os.get_terminal_size(self.file.fileno())
        self.size = ConsoleDimensions(columns or 80, lines or 24)
        return self.size

    def on_broken_pipe(self) -> None:
        """Raise the error; rich would end the process."""
        raise BrokenPipeError


class LiveView:
    """Draws the progress of runs on a terminal. A context manager, with the methods of `LineView`.

    While it is open, the console's lines are printed above the table. If the terminal is gone, nothing is drawn any
    more, and the runs go on.
    """

    def __init__(self, console: Console, progress: RunProgress, stream: TextIO):
        self.console, self.progress, self.names_assets = console, progress, False
        self._lock, self._stack = threading.RLock(), ExitStack()
        self._terminal = Terminal(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._terminal,
            get_renderable=self._frame,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._above: deque[str] = deque(maxlen=KEPT_LINES)
        self._width = self._terminal.ask_size().width
        self._gone = False

    def __enter__(self) -> Self:
        self._stack.enter_context(self._cursor_after_sigterm())
        self._stack.callback(self._stop)
        with self._drawing():
            self._live.start()
        self.console.above = self._print
        self._stack.enter_context(looking(self._look, REFRESH_S, "live-view"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        self.console.above = None
        with self._lock, self._drawing():
            self._live.stop()

    def plan(self, names: Collection[str]) -> None:
        """Add what the next run makes, and draw it: a short run may end before the next refresh."""
        with self._lock, self._drawing():
            self.progress.plan(names)
            self._live.refresh()

    def start(self, name: str) -> None:
        """Show that the work on an asset begins."""
        with self._lock:
            self.progress.start(name)

    def hear(self, name: str, level: int, message: str) -> None:
        """Show a log message of an asset in its line; print a warning above the table."""
        if (text := shown_message(level, message)) is None:
            return
        if level > logging.INFO:
            self.line(text, name)
            return
        with self._lock:
            self.progress.hear(name, redacted(text))

    def line(self, text: str, name: str = "") -> None:
        """Print a line about an asset above the table."""
        prefix = f"{name}: " if name and name not in text else ""
        self.console.line(f"{prefix}{text}")

    def finish(self, name: str, seconds: float) -> None:
        """Show that an asset is made."""
        with self._lock:
            self.progress.finish(name, seconds)

    def fail(self, name: str, blocked: Iterable[str] = ()) -> None:
        """Show that an asset has failed, and what is not made because of it."""
        with self._lock:
            self.progress.fail([name], blocked)

    def leave(self) -> None:
        """Let the last frame stay on the screen when the view is closed: the user has stopped the run."""
        self._live.transient = False

    def _print(self, line: str) -> None:
        """Print a line above the table.

        Raises:
            OSError: the terminal is gone.
        """
        with self._lock:
            self._above.append(line)
            if self._gone:
                raise OSError("the terminal is gone")
            self._terminal.print(Text(line), soft_wrap=False, overflow="fold")

    def _frame(self) -> Text:
        with self._lock:
            return frame(self.progress, self._terminal.size, ascii_only=self._terminal.options.ascii_only)

    def _look(self) -> bool:
        with self._lock, self._drawing():
            width = self._terminal.ask_size().width
            if width < self._width:
                # Lines of the frame were wrapped, so that it does not begin where it was drawn. First the frame for the
                # new width: the lines are printed above the last one.
                self._live.refresh()
                self._terminal.control(Control.clear(), Control.home())
                for line in list(self._above)[-self._terminal.size.height :]:
                    self._terminal.print(Text(line), soft_wrap=False, overflow="fold")
            self._width = width
            self._live.refresh()
        return self._gone

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Write to the terminal; if it is gone, nothing is drawn from then on."""
        try:
            yield
        except OSError:
            self._gone = True

    @contextmanager
    def _cursor_after_sigterm(self) -> Iterator[None]:
        """Show the cursor again if a signal ends the process where nothing else handles it."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return

        def end(number: int, _: FrameType | None) -> None:
            # Not by rich, whose lock the interrupted code may hold.
            with suppress(OSError, ValueError):
                os.write(self._terminal.file.fileno(), SHOW_CURSOR)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
