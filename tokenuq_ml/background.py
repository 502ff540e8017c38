"""A thread that looks at something now and then, for as long as a block lasts."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def looking(look: Callable[[], bool], seconds: float, name: str) -> Iterator[None]:
    """Call `look` every `seconds`, first after that time, until it returns True or the block ends.

    Args:
        look: what is called, in a thread of its own.
        seconds: between two calls.
        name: of the thread.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            if look():
                return

    thread = threading.Thread(target=repeat, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
