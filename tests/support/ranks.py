"""Several processes of one group on this machine: a test file runs itself once for each rank."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import free_port


def run_ranks(file: str | Path, *arguments: str | Path, ranks: int = 2) -> None:
    """Run a Python file in every rank, each with one thread, and wait until all have ended well."""
    port, children = free_port(), []
    for rank in range(ranks):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, str(file), *map(str, arguments)]
        children.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        for child in children:
            _, errors = child.communicate(timeout=240)
            assert child.returncode == 0, errors[-3000:]
    finally:
        for child in children:
            child.kill()
            child.wait()
