"""Folders that a run needs: the configuration, the store, Dagster's home with its settings.

`python -m tokenuq_pipeline.home` makes Dagster's home and prints it. Knows nothing of assets.
"""

import os
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
"""


def checkout() -> Path:
    """The folder that holds `config/`: the checkout, or else the working directory."""
    here = Path(__file__).resolve().parents[1]
    return here if (here / "config").is_dir() else Path.cwd()


def config_folders(environment: Mapping[str, str]) -> list[Path]:
    """The checkout's `config/` and, beside it, `$TOKENUQ_CONFIG`."""
    folders = [checkout() / "config"]
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
    return Path(os.environ.get("TOKENUQ_HOME") or checkout() / "store").expanduser().resolve()


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


if __name__ == "__main__":
    print(dagster_home())
