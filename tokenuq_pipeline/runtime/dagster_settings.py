"""`dagster.yaml`: the settings of Dagster's instance, and where its records are: SQLite files, or PostgreSQL.

    export TOKENUQ_DAGSTER_POSTGRES=postgresql://user@host/database     # the password: PGPASSWORD, or ~/.pgpass

The file is written once and belongs to the user then. The one change that is made to it later is to append `storage:`,
which refers to the variable and so holds no password.
"""

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.disk import full_disk
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import hide, redacted

POSTGRES_VARIABLE = "TOKENUQ_DAGSTER_POSTGRES"
EXAMPLE = "postgresql://user@host/database"
SCHEMES = ("postgresql", "postgresql+psycopg2")
"""Of addresses: as libpq takes it, and as SQLAlchemy does with the driver that Dagster uses."""
CONNECT_TIMEOUT_S = 5
ADVISORY_LOCK = 7_205_759_403
"""The number of the lock in PostgreSQL; any that other programs in the same database do not use."""
READY = ".tokenuq_records"
"""A file in `DAGSTER_HOME` that says for which database its tables exist."""
SQLITE = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
"""Dagster's SQLite files in `DAGSTER_HOME`."""

SETTINGS = """\
# Written once by tokenuq. You may edit it.
telemetry:
  enabled: false

# No welcome dialog on the first page.
nux:
  enabled: false

# Pools count ops, not runs: a limit that you set in the UI applies across runs.
concurrency:
  pools:
    granularity: op

# Ends runs that hang while they start or cancel, and frees the slots of finished runs.
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  cancel_timeout_seconds: 120
  poll_interval_seconds: 15
  free_slots_after_run_end_seconds: 10
"""
POSTGRES = f"""
# Dagster's records are in PostgreSQL, at the address that the environment variable holds.
storage:
  postgres:
    postgres_url:
      env: {POSTGRES_VARIABLE}
"""
STORAGE_KEYS = ("storage", "run_storage", "event_log_storage", "schedule_storage")
"""Keys of dagster.yaml that say where records are."""


def write_settings(home: Path, environment: Mapping[str, str]) -> None:
    """Write `dagster.yaml` if it is missing, empty or cut short, and give it the storage that the environment names.

    Raises:
        InputError: the file cannot be written or read, or it and the environment contradict each other.
    """
    # Where a link leads to: the link stays.
    path, postgres = (home / "dagster.yaml").resolve(), environment.get(POSTGRES_VARIABLE)
    text = _read(path)
    if not text.strip() or _is_cut(text):
        text = SETTINGS + POSTGRES if postgres else SETTINGS
        _write(path, text)
    settings = _parse(path, text)
    ours = settings.get("storage") == yaml.safe_load(POSTGRES)["storage"]
    if postgres and not ours:
        if kept := next((key for key in STORAGE_KEYS if key in settings), None):
            raise InputError(
                f"{path}: `{kept}:` says where Dagster's records are, and {POSTGRES_VARIABLE} names a database for "
                f"them; delete `{kept}:` from the file, or unset the variable"
            )
        _write(path, f"{text.rstrip()}\n{POSTGRES}")
    elif ours and not postgres:
        raise InputError(
            f"{path}: Dagster's records are in the database that {POSTGRES_VARIABLE} names, and it is not set; set it "
            f"({EXAMPLE}), or delete `storage:` from the file for new records in SQLite files"
        )


def require_postgres(environment: MutableMapping[str, str]) -> None:
    """Connect to the database that the environment names, if it names one, and name the driver in the address.

    SQLAlchemy 2.1 takes psycopg for addresses without a driver; dagster-postgres is written for psycopg2.

    Raises:
        InputError: the variable holds no address of PostgreSQL, a package is missing, or the server does not answer.
    """
    if not (url := environment.get(POSTGRES_VARIABLE)):
        return
    try:
        parts = urlsplit(url)
        where = f"{parts.hostname or 'this machine'}{f':{parts.port}' if parts.port else ''}{parts.path}"
        hide(parts.password)
        hide(unquote(parts.password or ""))
    except ValueError:
        parts, where = urlsplit(""), ""
    if parts.scheme not in SCHEMES or not parts.path.strip("/"):
        raise InputError(f"{POSTGRES_VARIABLE}: {redacted(url)!r} is not the address of a database, such as {EXAMPLE}")
    if importlib.util.find_spec("dagster_postgres") is None:
        raise InputError(f"{POSTGRES_VARIABLE}: needs a package; run `pip install 'tokenuq[postgres]'`")
    import psycopg2

    address = url.partition("://")[2]
    try:
        psycopg2.connect(f"{SCHEMES[0]}://{address}", connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg2.Error as error:
        raise InputError(f"{POSTGRES_VARIABLE}: no connection to {where}: {_first_line(error)}") from None
    environment[POSTGRES_VARIABLE] = f"{SCHEMES[1]}://{address}"


def create_records(home: Path, environment: Mapping[str, str]) -> None:
    """Create the tables of Dagster's records if this home, or this database, is used for the first time.

    Dagster creates them wherever an instance is opened, and two processes that do so at once leave a version table with
    two rows, with which no instance opens again. The caller holds a lock on the home. The lock for a database is the
    database's, since other machines have other homes.
    """
    where = environment.get(POSTGRES_VARIABLE, "")
    ready = home / READY
    if (
        ready.is_file()
        and ready.read_text() == _digest(where)
        and (where or all((home / db).is_file() for db in SQLITE))
    ):
        return
    import dagster as dg

    with _advisory_lock(where) if where else contextlib.nullcontext(), dg.DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
        instance.event_log_storage.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_OBSERVATION), 1)
        instance.all_instigator_state()
    _write(ready, _digest(where))


def _digest(where: str) -> str:
    """Return what tells databases apart, without the address itself."""
    return hashlib.sha256(where.rpartition("@")[2].encode()).hexdigest() if where else "sqlite"


@contextlib.contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    """Hold a lock of the database for the block."""
    import psycopg2

    connection = psycopg2.connect(f"{SCHEMES[0]}://{url.partition('://')[2]}", connect_timeout=CONNECT_TIMEOUT_S)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        yield
    finally:
        connection.close()


def records_failure(error: BaseException | None) -> str | None:
    """Return the sentence for an error of the database that keeps Dagster's records; None for other errors."""
    if "sqlalchemy" not in sys.modules:
        return None
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import DBAPIError

    while error is not None:
        if isinstance(error, CommandError) or (isinstance(error, DBAPIError) and _is_damage(error)):
            where = "the database" if os.environ.get(POSTGRES_VARIABLE) else os.environ.get("DAGSTER_HOME", "memory")
            return (
                f"Dagster's records in {where} are damaged ({_first_line(getattr(error, 'orig', None) or error)}); "
                "name an empty place instead: what the store holds is adopted there, and nothing is computed again"
            )
        if isinstance(error, DBAPIError) and error.orig is not None:
            return (
                f"Dagster's records cannot be read or written: {_first_line(error.orig)}; finished assets are kept in "
                "the store: run the same command again"
            )
        error = error.__cause__ or error.__context__
    return None


def _is_damage(error: BaseException) -> bool:
    """Return whether a file of SQLite is damaged."""
    return any(words in str(error) for words in ("malformed", "not a database"))


def _first_line(error: BaseException) -> str:
    """Return what the server or the driver says, and what helps where that is known."""
    said = redacted(next((line.strip() for line in str(error).splitlines() if line.strip()), "it gives no reason"))
    advice = {
        "Connection refused": "start the server, or correct the address",
        "No such file": "start the server, or correct the address",
        "no password supplied": "set PGPASSWORD, or add a line to ~/.pgpass",
        "password authentication failed": "correct PGPASSWORD or ~/.pgpass",
        "does not exist": "create it with `createdb` or `createuser`",
        "permission denied": "let the user own the database (`createdb --owner`)",
    }
    help_ = next((f"; {what}" for words, what in advice.items() if words in said), "")
    return said + help_


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None


def _is_cut(text: str) -> bool:
    """Return whether a text is `SETTINGS` up to the middle of a line, as a full disk left it."""
    return SETTINGS.startswith(text) and SETTINGS[len(text) :][:1] not in ("", "\n") and not text.endswith("\n")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = f" in line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise InputError(f"{path}: is not YAML{where}; correct it, or delete it to get a new one") from None
    if settings is not None and not isinstance(settings, dict):
        raise InputError(f"{path}: must hold `key: value` lines; correct it, or delete it to get a new one")
    return settings or {}


def _write(path: Path, text: str) -> None:
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        reason = full_disk(error, path.parent) or f"{path}: cannot be written: {error.strerror}"
        raise InputError(reason) from None
