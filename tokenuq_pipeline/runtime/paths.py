"""Folders that the environment names: the configuration, the store, and Dagster's home with its settings.

`python -m tokenuq_pipeline.runtime.paths` creates the folders, prints them, and closes runs that a killed UI left open.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.disk import full_disk
from tokenuq_ml.errors import InputError
from tokenuq_ml.permissions import not_permitted
from tokenuq_pipeline.runtime.folder_lock import lock_file

LOCK = ".tokenuq.lock"
"""A file in `DAGSTER_HOME` that commands lock while they look at its settings: several may be started at once."""


def checkout() -> Path:
    """Return the checkout that holds this file, or the working directory if tokenuq is installed without one."""
    here = Path(__file__).resolve().parents[2]
    return here if (here / "pyproject.toml").is_file() else Path.cwd()


def config_folders(environment: Mapping[str, str]) -> list[Path]:
    """Return the folders that configuration is read from: the shipped one, then `$TOKENUQ_CONFIG` if it is set."""
    from tokenuq_ml.config.shipped import shipped_config

    folders = [shipped_config()]
    if extra := environment.get("TOKENUQ_CONFIG"):
        if not Path(extra).is_dir():
            raise InputError(
                f"TOKENUQ_CONFIG: {extra}: no such folder; name one that holds models.yaml, "
                "datasets.yaml, studies.yaml or ablations.yaml, or unset it"
            )
        folders.append(Path(extra).expanduser().resolve())
    return folders


def store_home() -> Path:
    """Return `$TOKENUQ_HOME`, by default `store/` in the checkout; of a store in a bucket, its mirror."""
    from tokenuq_ml.tables.partitions import store_home

    return store_home()


def store_name() -> str:
    """Return `store_home()` for messages: of a store in a bucket, the address."""
    from tokenuq_ml.object_store.registry import bucket_mirror

    home = store_home()
    mirror = bucket_mirror(home)
    return str(home if mirror is None else mirror.address)


def dagster_home() -> Path:
    """Return `$DAGSTER_HOME`, by default `.dagster_home/` in the checkout; creates it, with settings, if it is missing.

    Sets `DAGSTER_HOME` to the absolute path, because Dagster rejects a relative one.

    Raises:
        InputError: it cannot be written, its settings are damaged, or the database that keeps its records is down.
    """
    from tokenuq_pipeline.runtime.dagster_settings import create_records, require_postgres, write_settings

    home = Path(os.environ.get("DAGSTER_HOME") or checkout() / ".dagster_home").expanduser().resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with lock_file(home / LOCK):
            write_settings(home, os.environ)
            require_postgres(os.environ)
            create_records(home, os.environ)
    except InputError:
        raise
    except Exception as error:
        reason = _why_not_written(error, home)
        if reason is None:
            raise
        raise InputError(f"DAGSTER_HOME: {reason}") from None
    return home


def _why_not_written(error: Exception, home: Path) -> str | None:
    """Return why the home cannot be written; None for other errors. SQLite has errors of its own for a full disk."""
    if not isinstance(error, OSError):
        return full_disk(error, home)
    return not_permitted(error, home) or full_disk(error, home) or f"{home}: {error.strerror}"


def main() -> None:
    """Create the folders and prepare the instance, before the UI starts."""
    import dagster as dg

    from tokenuq_pipeline.runtime.instance import prepare

    try:
        print(f"runs in {dagster_home()}, results in {store_name()}")
        with dg.DagsterInstance.get() as instance:
            for line in prepare(instance, store_home()):
                print(line)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
