"""A terminal for tests: a pseudo-terminal, and what an independent emulator (pyte) shows of what is written to it."""

import fcntl
import os
import select
import struct
import termios
from typing import TextIO

import pyte


class Screen:
    """A pseudo-terminal of some size, whose other end is `stream`."""

    def __init__(self, columns: int = 100, lines: int = 24):
        self._master, slave = os.openpty()
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._screen = pyte.Screen(columns, lines)
        self._parser = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as a window does; a terminal keeps its text, and so does the emulator."""
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def _read(self) -> None:
        while select.select([self._master], [], [], 0)[0]:
            try:
                new = os.read(self._master, 2**16)
            except OSError:
                return
            self.raw += new
            self._parser.feed(new)

    @property
    def lines(self) -> list[str]:
        """Return what is shown, without the empty lines at the end."""
        self._read()
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    @property
    def cursor_is_hidden(self) -> bool:
        """Return whether no cursor is shown."""
        self._read()
        return self._screen.cursor.hidden

    def close(self) -> None:
        """Close both ends."""
        for end in (self.stream, None):
            try:
                end.close() if end is not None else os.close(self._master)
            except OSError:
                pass

    def hang_up(self) -> None:
        """Close the end of the terminal, as a closed window does."""
        os.close(self._master)
