"""A file system as NFS clients have it, without a server: no `flock`, no exchange of folders, a cache of what was seen.

    with network_files(delay=0.3):
        store.publish(...)

For `delay` seconds, a folder's list and a file's attributes are those that this process last saw, also that a file does
not exist. As on NFS, opening a file asks for its attributes again (close-to-open consistency), and creating, linking
and renaming are done at once, as one step, and show in this process.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tokenuq_ml import atomic_files

CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "utime")


class _Cache:
    """What this process has seen of a file system, and when."""

    def __init__(self, delay: float):
        self._delay, self._seen = delay, {}
        self.was_late = 0

    def get(self, key: tuple, look: Callable[[], Any]) -> Any:
        """Return what was seen under a key, if that is not long ago; an error is remembered too."""
        known = self._seen.get(key)
        if known is None or time.monotonic() - known[0] > self._delay:
            try:
                found = (True, look())
            except FileNotFoundError as error:
                found = (False, error)
            known = self._seen[key] = (time.monotonic(), found)
        else:
            self.was_late += 1
        worked, value = known[1]
        if not worked:
            raise value
        return value

    def forget(self, *paths: Any, with_folders: bool) -> None:
        """Forget what is known of paths, and of the folders that they are in."""
        names = {os.path.abspath(os.fspath(path)) for path in paths if isinstance(path, str | os.PathLike)}
        names |= {os.path.dirname(name) for name in names} if with_folders else set()
        for key in [key for key in self._seen if key[1] in names]:
            del self._seen[key]

    def clear(self) -> None:
        """Forget everything."""
        self._seen.clear()


class _Entries:
    """Entries as `os.scandir` returns them."""

    def __init__(self, entries: list):
        self._left = iter(entries)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._left)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass


@contextlib.contextmanager
def network_files(delay: float, cache: "_Cache | None" = None) -> Iterator["_Cache"]:
    """Let this process see the file system as an NFS client does; with the cache of an earlier block, as that one."""
    cache = cache or _Cache(delay)
    real = {name: getattr(os, name) for name in (*CHANGES, "scandir", "listdir", "stat", "lstat", "open")}

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    def changed(name: str) -> Callable:
        def call(*paths: Any, **options: Any) -> Any:
            try:
                return real[name](*paths, **options)
            finally:
                if options.get("dir_fd") is None:
                    cache.forget(*paths, with_folders=True)
                else:
                    cache.clear()

        return call

    def looked(name: str) -> Callable:
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, str | os.PathLike):
                return real[name](path, *arguments, **options)
            key = (name, os.path.abspath(os.fspath(path)), arguments, tuple(sorted(options.items())))
            return cache.get(key, lambda: real[name](path, *arguments, **options))

        return call

    def scanned(path: Any = ".") -> _Entries:
        def look() -> list:
            with real["scandir"](path) as entries:
                return list(entries)

        if isinstance(path, int):
            return _Entries(look())
        return _Entries(cache.get(("scandir", os.path.abspath(os.fspath(path))), look))

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        cache.forget(path, with_folders=bool(flags & os.O_CREAT))
        return real["open"](path, flags, *arguments, **options)

    real_open = builtins.open

    def opened_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        cache.forget(file, with_folders=mode[0] in "wxa")
        return real_open(file, mode, *arguments, **options)

    replaced = {name: changed(name) for name in CHANGES}
    replaced |= {"stat": looked("stat"), "lstat": looked("lstat"), "listdir": looked("listdir")}
    replaced |= {"scandir": scanned, "open": opened}
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(os, name, function))
        for module in (builtins, io):
            stack.enter_context(mock.patch.object(module, "open", opened_file))
        stack.enter_context(mock.patch.object(fcntl, "flock", refuse))
        stack.enter_context(mock.patch.object(atomic_files, "exchange_folders", lambda one, other: False))
        yield cache
