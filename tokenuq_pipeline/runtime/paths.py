"""Folders that a run needs: the configuration, the store, Dagster's home with its settings.

`python -m tokenuq_pipeline.runtime.paths` makes Dagster's home, ends what a killed UI left open, and prints where things lie.
Knows nothing of assets.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.errors import InputError

SETTINGS = """\
# Written once by tokenuq; yours to edit from here on.
telemetry:
  enabled: false

# No invitation over the first page.
nux:
  enabled: false

# Pools count ops, not runs: a limit that you give a pool in the UI holds between runs.
concurrency:
  pools:
    granularity: op

# Ends runs that hang at start or at cancelling, and gives back the slots of what has ended.
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


def shipped_config() -> Path:
    """Return the folder of the shipped configuration: the checkout's `config/`, or its copy in the installed wheel."""
    installed = Path(__file__).resolve().parents[1] / "config"
    return installed if installed.is_dir() else checkout() / "config"


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
    """`$TOKENUQ_HOME`, by default `store/` in the checkout."""
    from tokenuq_ml.tables.partitions import store_home

    return store_home()


def dagster_home() -> Path:
    """`$DAGSTER_HOME`, by default `.dagster_home/` in the checkout; made, with settings, where missing.

    Sets `DAGSTER_HOME` to the absolute path: Dagster refuses a relative one.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or checkout() / ".dagster_home").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(SETTINGS)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def main() -> None:
    """Make the folders, and put the instance in order, before the UI starts."""
    print(f"runs in {dagster_home()}, results in {store_home()}")
    import dagster as dg

    from tokenuq_pipeline.runtime.instance import prepare

    try:
        with dg.DagsterInstance.get() as instance:
            for line in prepare(instance):
                print(line)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
