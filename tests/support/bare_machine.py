"""A Python process that finds few packages, as on a bare machine with torch, transformers and peft."""

import os
import subprocess
import sys

from tests.support.paths import ROOT

ABSENT = (
    "bitsandbytes",
    "dagster",
    "dagster_pipes",
    "datasets",
    "duckdb",
    "gguf",
    "liger_kernel",
    "matplotlib",
    "pandas",
    "polars",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "trl",
)


def run_on_bare_machine(program: str) -> str:
    """Run a program whose imports of `ABSENT` fail as if they were not installed; return what it prints."""
    # None in `sys.modules` is how Python notes that a module cannot be imported.
    blocked = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    process = subprocess.run(
        [sys.executable, "-c", blocked + program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
