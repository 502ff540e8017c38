"""Limits of time and memory for a chat template, which is a program of whoever published the model.

Jinja's sandbox limits what a template reaches and the length of `range`, not how long it runs or how much it builds:
a loop in a loop in a loop never ends, and `'x' * 10 ** 10` takes ten gigabytes. Libraries for time limits
(`func_timeout`, `stopit`) start a thread per call, which costs more than a rendering does.
"""

import contextlib
import gc
import operator
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenuq_ml.errors import InputError
from tokenuq_ml.patches import sandbox_of_templates

SECONDS_VARIABLE, DEFAULT_SECONDS = "TOKENUQ_TEMPLATE_SECONDS", 10.0
MEMORY_BYTES = 2**30
"""What one rendering may add to the memory of the process."""
TEXT_CHARACTERS = 2**26
"""Characters of a rendered conversation."""
NUMBER_BITS = 2**16
"""Bits of a product or a power. Python computes larger ones without looking whether time is up."""
GROWN_BYTES = 2**26
"""Growth of the process after which a rendering that found no memory is tried again."""
TICK_S = 0.25
"""Seconds of processor time between two looks whether time is up."""


class TemplateLimitError(InputError):
    """A chat template exceeds a limit. No `TemplateError`: it is not the conversation that is at fault."""


class TimeIsUp(BaseException):
    """Ends a rendering; no `Exception`, so that nothing on the way takes it for an error of the template."""


def seconds() -> float:
    """Return the processor time that one rendering may take.

    Raises:
        InputError: the variable is not a positive number.
    """
    text = os.environ.get(SECONDS_VARIABLE, "")
    with contextlib.suppress(ValueError):
        value = float(text or DEFAULT_SECONDS)
        if 0 < value < 1e6:
            return value
    raise InputError(f"{SECONDS_VARIABLE}: must be a number of seconds above 0, is {text!r}")


class _TooLarge(MemoryError):
    """A product or a power that Python would compute for minutes, or that fills the memory."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with products and powers that stay small."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of `*` or `**`."""
        return _OPERATIONS[operator](left, right)


class TemplateLimits:
    """The limits of this process: entered around many renderings, because to set them takes as long as a short one.

    The time is the process's processor time, so that a busy or suspended machine ends no rendering. A signal looks
    every quarter of a second whether it is up; Python runs its handler in the main thread only, so that there is no
    limit of time in others. Python swallows and prints what is raised in a finalizer or in a callback of the garbage
    collector or of a weak reference. Such a `TimeIsUp` is not printed; the next look raises another.
    """

    def __init__(self) -> None:
        self._entered, self._started, self._limit_s = 0, 0.0, DEFAULT_SECONDS
        self._size = 0
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self._entered:
            with contextlib.ExitStack() as stack:
                self._limit_s = seconds()
                stack.enter_context(sandbox_of_templates(LimitedEnvironment))
                self._limit_time(stack)
                self._limit_memory(stack)
                self._exits = stack.pop_all()
        self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered:
            self._exits.close()

    def run(self, render: Callable[[], str], name: str) -> str:
        """Return what `render` returns, within the limits.

        Args:
            render: renders a conversation.
            name: what messages call the template, after "the chat template".

        Raises:
            TemplateLimitError: a limit is exceeded.
            Exception: what `render` raises.
        """
        if not self._entered:
            with self:
                return self.run(render, name)
        try:
            text = self._timed(render)
        except TimeIsUp:
            raise TemplateLimitError(
                f"the chat template {name} takes more than {self._limit_s:g} s for one conversation, as an endless "
                f"loop does; {_REMEDY}, or set {SECONDS_VARIABLE} to more seconds"
            ) from None
        except MemoryError as error:
            needs = str(error) or f"needs more than {MEMORY_BYTES >> 20:,} MiB of memory"
            raise TemplateLimitError(f"the chat template {name} {needs} for one conversation; {_REMEDY}") from None
        if len(text) > TEXT_CHARACTERS:
            raise TemplateLimitError(
                f"the chat template {name} renders {len(text):,} characters for one conversation, more than "
                f"{TEXT_CHARACTERS:,}; {_REMEDY}"
            )
        return text

    def _timed(self, render: Callable[[], str]) -> str:
        try:
            self._started = time.process_time()
            return render()
        except _TooLarge:
            raise
        except MemoryError:
            # Without the frames of the error, which hold what the template has built.
            pass
        finally:
            self._started = 0.0
        gc.collect()
        size = _data_bytes()
        if size - self._size < GROWN_BYTES:
            raise MemoryError
        # The process has grown since it entered, perhaps not by this template.
        self._size = size
        _set_memory_limit(size + MEMORY_BYTES)
        try:
            self._started = time.process_time()
            return render()
        finally:
            self._started = 0.0

    def _limit_time(self, stack: contextlib.ExitStack) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        stack.callback(signal.signal, signal.SIGVTALRM, signal.signal(signal.SIGVTALRM, self._look))
        stack.callback(
            signal.setitimer, signal.ITIMER_VIRTUAL, *signal.setitimer(signal.ITIMER_VIRTUAL, TICK_S, TICK_S)
        )
        stack.enter_context(_quiet_time_is_up())

    def _limit_memory(self, stack: contextlib.ExitStack) -> None:
        if _STATM.exists():
            self._size = _data_bytes()
            stack.callback(resource.setrlimit, resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA))
            _set_memory_limit(self._size + MEMORY_BYTES)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._started and time.process_time() - self._started > self._limit_s:
            raise TimeIsUp


LIMITS = TemplateLimits()

_REMEDY = "correct it, or name another one as `chat_template:` of the model in models.yaml"
_STATM = Path("/proc/self/statm")


@contextlib.contextmanager
def _quiet_time_is_up() -> Iterator[None]:
    """Print no `TimeIsUp` that Python swallows, and all others as before."""
    hook = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, TimeIsUp):
            hook(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _set_memory_limit(size: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _data_bytes() -> int:
    """Return the size of this process's data, which the limit counts."""
    # The sixth number: data and stack, in pages.
    return int(_STATM.read_text().split()[5]) * resource.getpagesize()


def _product(left: Any, right: Any) -> Any:
    for one, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(one, str | list | tuple) and len(one) * times > TEXT_CHARACTERS:
            raise _TooLarge(f"builds a text or list of {len(one) * times:,} items")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > NUMBER_BITS:
        raise _TooLarge(f"computes a number of more than {NUMBER_BITS:,} bits")
    return operator.mul(left, right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > NUMBER_BITS:
        raise _TooLarge(f"computes a number of more than {NUMBER_BITS:,} bits")
    return operator.pow(left, right)


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {"*": _product, "**": _power}
