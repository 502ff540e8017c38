"""Folders that the environment names: the configuration, the store, and Dagster's home with its settings.

`python -m tokenuq_pipeline.runtime.paths` creates the folders, prints them, and closes runs that a killed UI left open.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.config.shipped import shipped_config
from tokenuq_ml.errors import InputError

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


def checkout() -> Path:
    """Return the checkout that holds this file, or the working directory if tokenuq is installed without one."""
    here = Path(__file__).resolve().parents[2]
    return here if (here / "pyproject.toml").is_file() else Path.cwd()


def config_folders(environment: Mapping[str, str]) -> list[Path]:
    """Return the folders that configuration is read from: the shipped one, then `$TOKENUQ_CONFIG` if it is set."""
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
    """Return `$TOKENUQ_HOME`, by default `store/` in the checkout."""
    from tokenuq_ml.tables.partitions import store_home

    return store_home()


def dagster_home() -> Path:
    """Return `$DAGSTER_HOME`, by default `.dagster_home/` in the checkout; creates it, with settings, if it is missing.

    Sets `DAGSTER_HOME` to the absolute path, because Dagster rejects a relative one.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or checkout() / ".dagster_home").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(SETTINGS)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def main() -> None:
    """Create the folders and prepare the instance, before the UI starts."""
    print(f"runs in {dagster_home()}, results in {store_home()}")
    import dagster as dg

    from tokenuq_pipeline.runtime.instance import prepare

    try:
        with dg.DagsterInstance.get() as instance:
            for line in prepare(instance, store_home()):
                print(line)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
