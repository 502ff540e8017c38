"""A process that dies between two system calls: at the n-th change to the disk, and it changes nothing from then on.

    with crash_at(7) as calls:
        store.publish(...)

The functions of `os` that change a file system are replaced, and files that are opened for writing count each write
twice, so that one may be cut in half. After the crash, every later change is refused too: a killed process runs neither
`finally` nor `except`. Other threads are left alone. `strace --inject` and FUSE do the same to whole processes, but not
a thousand times per second.
"""

import builtins
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from unittest import mock

from tokenuq_ml import atomic_files

CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "utime", "chmod")


class Crash(BaseException):
    """The process is dead. Not an `Exception`, so that nothing handles it."""


class Calls:
    """Counts changes of one thread, and crashes at the n-th.

    Attributes:
        count: changes that were asked for.
        names: what they were, for the message of a failed test.
    """

    def __init__(self, crash_at: int | None):
        self._crash_at, self._thread = crash_at, threading.get_ident()
        self.count, self.names = 0, []

    @property
    def crashed(self) -> bool:
        """Return whether the process has died."""
        return self._crash_at is not None and self.count >= self._crash_at

    def tick(self, name: str) -> None:
        """Count a change that is about to be made.

        Raises:
            Crash: it is the n-th, or a later one.
        """
        if threading.get_ident() != self._thread:
            return
        self.count += 1
        self.names.append(name)
        if self.crashed:
            raise Crash(f"{self.count}: {name}")

    def counted(self, name: str, function: Callable) -> Callable:
        """Return `function` so that its calls count."""

        def call(*arguments, **options):
            self.tick(f"{name}({', '.join(map(str, arguments))})")
            return function(*arguments, **options)

        return call


class _WrittenFile:
    """A binary file whose every write counts, before it and in its middle."""

    def __init__(self, file, calls: Calls):
        self._file, self._calls = file, calls

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, content) -> int:
        content = bytes(content)
        self._calls.tick(f"write({len(content)} bytes)")
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._calls.tick("the second half of it")
        self._file.write(content[len(content) // 2 :])
        self._file.flush()
        return len(content)


@contextlib.contextmanager
def crash_at(number: int | None, exchange: bool = True) -> Iterator[Calls]:
    """Let this thread die at its `number`-th change to the disk; None: never, and count only.

    Args:
        number: from 1.
        exchange: whether the file system can exchange two folders in one step.

    Raises:
        Crash: the thread has died, as seen by the caller.
    """
    calls = Calls(number)
    open_file, open_descriptor = builtins.open, os.open

    def opened(file, mode="r", *arguments, **options):
        if not set(mode) & set("wxa+"):
            return open_file(file, mode, *arguments, **options)
        calls.tick(f"open({file}, {mode})")
        found = open_file(file, mode, *arguments, **options)
        return _WrittenFile(found, calls) if "b" in mode else found

    def opened_descriptor(path, flags, *arguments, **options):
        if flags & (os.O_CREAT | os.O_TRUNC):
            calls.tick(f"open({path})")
        return open_descriptor(path, flags, *arguments, **options)

    swap = calls.counted("exchange", atomic_files.exchange_folders) if exchange else lambda one, other: False
    with contextlib.ExitStack() as stack:
        for name in CHANGES:
            stack.enter_context(mock.patch.object(os, name, calls.counted(name, getattr(os, name))))
        # Counted, but not made: what a power failure loses is not the question here.
        stack.enter_context(mock.patch.object(os, "fsync", lambda descriptor: calls.tick("fsync")))
        stack.enter_context(mock.patch.object(os, "open", opened_descriptor))
        stack.enter_context(mock.patch.object(builtins, "open", opened))
        stack.enter_context(mock.patch.object(io, "open", opened))
        stack.enter_context(mock.patch.object(atomic_files, "exchange_folders", swap))
        yield calls
