"""Other packages without their log lines and progress bars."""

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(logger: str | None, level: int = logging.ERROR) -> Iterator[None]:
    """Drop what a logger says below `level`, and all that is written to standard error. Errors are raised.

    Args:
        logger: its name; None: the root logger, by which some packages log.
        level: of the first messages that stay.
    """
    named = logging.getLogger(logger)
    before = named.level
    named.setLevel(level)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        named.setLevel(before)
