"""The port of the UI: taken before anything starts, so that a port in use is one sentence and no half-started UI."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.errors import InputError

LISTENING = "0A"
SHOWN_CHARACTERS = 80


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port; port 0 stands for any that is free.

    Raises:
        InputError: another process has the port, or the address cannot be used; says which, and what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; give --host and --port that exist") from None
    found = socket.socket(family, socket.SOCK_STREAM)
    # Otherwise connections of a UI that has just ended would keep the port for a minute.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        if error.errno != errno.EADDRINUSE:
            raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port") from None
        raise InputError(
            f"port {port} is in use by {holder(port)}: end it, or choose another port (make ui PORT={port + 1})"
        ) from None
    return found


def holder(port: int) -> str:
    """Return which process listens on a port, as words for a message."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and sockets & set(_open_files(int(entry.name))):
            return f"process {entry.name} ({_command(int(entry.name))})"
    return "a process of another user or container"


def _command(pid: int) -> str:
    """Return a command line. Its arguments may hold anything: who prints it redacts and escapes it."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "it has just ended"
    return content.replace(b"\0", b" ").decode(errors="replace").strip()[:SHOWN_CHARACTERS]


def _inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _open_files(pid: int) -> Iterator[str]:
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            yield os.readlink(entry.path)
    except OSError:
        return
