"""The shipped configuration: where it is, and its ablations by name."""

import functools
from pathlib import Path

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.load import load_ablations

INSTALLED = Path(__file__).parent / "shipped_files"
"""Its copy in the installed wheel; setup.py maps the checkout's `config/` there."""


def shipped_config() -> Path:
    """Return the folder of the shipped configuration: the checkout's `config/`, or its copy in the installed wheel."""
    return INSTALLED if INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "config"


@functools.cache
def shipped_ablations() -> dict[str, AblationSpec]:
    """Return the ablations of the shipped `ablations.yaml` by name; sweeps are expanded."""
    return load_ablations(shipped_config())
