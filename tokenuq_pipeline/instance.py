"""The persistent Dagster instance inside the checkout, shared by command line and web UI.

Knows where it lies and how it is set; nothing of assets.
"""

import os
from pathlib import Path

import dagster as dg

DAGSTER_YAML = """\
# Written by tokenuq where there was none; edit at will.
telemetry:
  enabled: false
run_monitoring:
  enabled: true
"""


def use_dagster_home(checkout: Path) -> Path:
    """Set `DAGSTER_HOME` (default: `.dagster_home/` in the checkout), made and set up where it is missing."""
    home = Path(os.environ.get("DAGSTER_HOME") or checkout / ".dagster_home").resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(DAGSTER_YAML)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def open_instance(checkout: Path) -> dg.DagsterInstance:
    """The instance at `DAGSTER_HOME`."""
    use_dagster_home(checkout)
    return dg.DagsterInstance.get()
