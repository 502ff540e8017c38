"""A PostgreSQL server of its own in a temporary folder, for tests.

`initdb` refuses root, so that root starts it as the user `postgres` or `nobody`.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import free_port

PASSWORD = "a b/c@d"
"""Of the role `tokenuq`. Must be escaped in a URL."""


@dataclass
class Postgres:
    """A server that is running."""

    programs: Path
    data: Path
    port: int
    user: str | None

    @property
    def url(self) -> str:
        """The address of the database, without the password."""
        return f"postgresql://tokenuq@127.0.0.1:{self.port}/tokenuq"

    def stop(self) -> None:
        """Stop the server as at a shutdown of the machine."""
        self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self.data.parent / "log")
        self.run("pg_ctl", "-D", str(self.data), "-o", options, "-l", log, "-w", "-t", "60", "start")

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL as the server's user."""
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            capture_output=True,
            env=environment,
            user=self.user,
            cwd="/",
        )


def programs() -> Path:
    """Return the folder with PostgreSQL's programs; skip the test where it is not installed."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    # Debian keeps them out of PATH.
    found += sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)
    if not found:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    return found[0]


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server with a database `tokenuq`, whose owner `tokenuq` logs in with `PASSWORD`."""
    installed = programs()
    # Not below a folder of pytest: those are open to their user only.
    folder = Path(tempfile.mkdtemp(prefix="tokenuq_pg_"))
    user = _user() if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    server = Postgres(installed, folder / "data", free_port(), user)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    try:
        common = ["-D", str(server.data), "-E", "UTF8", "--no-sync"]
        server.run("initdb", *common, "-U", "tokenuq", "-A", "scram-sha-256", "--pwfile", str(password))
        server.start()
        try:
            server.run("createdb", "-h", "127.0.0.1", "-p", str(server.port), "-U", "tokenuq", "tokenuq")
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
