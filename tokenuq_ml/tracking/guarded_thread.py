"""A thread that works for a tracker, so that a tracker which fails or hangs neither fails nor stops a training.

Timeouts of the libraries are not enough: they differ, retries multiply them, and some calls have none.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tokenuq_ml.redaction import redacted

WAITING = 512
"""Calls that may wait for the tracker. Beyond them, the training waits for it, for as long as a call may take."""

Call = Callable[[], None]


class GuardedThread:
    """Makes calls one after the other, until one fails or takes too long; later calls are dropped.

    Args:
        name: of the tracker, for messages and for the thread.
        limit_s: seconds that a call may take.

    Attributes:
        failure: why the tracker is not called any more; None while it works.
    """

    def __init__(self, name: str, limit_s: float):
        self.name, self.limit_s = name, limit_s
        self.failure: str | None = None
        self._calls: queue.Queue[tuple[Call, threading.Event] | None] = queue.Queue(WAITING)
        self._started: float | None = None
        # A daemon: a call that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def call(self, function: Call) -> threading.Event | None:
        """Make a call later; return what says that it has ended, None if it is dropped.

        Waits only if too many are waiting already.
        """
        started = self._started
        if started is not None and time.monotonic() - started > self.limit_s:
            self._fail(f"did not answer for {self.limit_s:g} s")
        if self.failure is not None:
            return None
        done = threading.Event()
        try:
            self._calls.put((function, done), timeout=self.limit_s)
        except queue.Full:
            self._fail(f"did not take what was reported: {WAITING} calls were waiting for {self.limit_s:g} s")
            return None
        return done

    def wait(self, done: threading.Event | None, limit_s: float, since: float | None = None) -> None:
        """Wait until a call has ended, or the tracker has failed; it fails after `limit_s` seconds.

        Args:
            done: of the call.
            limit_s: seconds.
            since: when they began, by `time.monotonic`; default: now.
        """
        deadline = (time.monotonic() if since is None else since) + limit_s
        while done is not None and self.failure is None:
            if done.wait(0.05):
                return
            if time.monotonic() > deadline:
                left = self._calls.qsize()
                waiting = f" with {left} calls waiting" if left else ""
                self._fail(f"did not answer for {limit_s:g} s{waiting}")

    def end(self) -> None:
        """End the thread after the calls that are waiting."""
        with suppress(queue.Full):
            self._calls.put_nowait(None)

    def _work(self) -> None:
        while self.failure is None:
            waiting = self._calls.get()
            if waiting is None:
                return
            function, done = waiting
            self._started = time.monotonic()
            try:
                if self.failure is None:
                    function()
            # SystemExit too: a tracker's command line code may raise it.
            except BaseException as error:
                self._fail(_in_words(error))
            finally:
                self._started = None
                done.set()

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason


def _in_words(error: BaseException) -> str:
    """Return an error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Before it is cut: a half of an address with a password in it does not look secret any more.
    text = redacted(lines[0]) if lines else "no message"
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:300] + '…'}"
