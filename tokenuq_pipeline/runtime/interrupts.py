"""Ctrl-C that is not lost while Dagster writes to its event log."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM to their handlers when the block ends, not within it.

    The handlers of Python and of Dagster raise. If the signal arrives in a finaliser or a weakref callback, of which
    SQLAlchemy has many, Python prints that exception and drops it: the run goes on as if nobody had pressed Ctrl-C.
    Dagster's `capture_interrupts` is private, and forgets a signal that nobody asks for before its block ends.

    Keep the block short. Outside the main thread, where Python delivers no signal, it changes nothing. A signal that
    is ignored or has the system's default action is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    handlers = {held: handler for held in HELD if callable(handler := signal.getsignal(held))}
    try:
        for held in handlers:
            signal.signal(held, lambda number, frame: arrived.append((number, frame)))
        yield
    finally:
        for held, handler in handlers.items():
            signal.signal(held, handler)
        if arrived:
            number, frame = arrived[0]
            handlers[signal.Signals(number)](number, frame)
