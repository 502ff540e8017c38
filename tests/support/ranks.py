"""Several processes of one group on this machine: a test file runs itself once for each rank.

    python -m tests.support.ranks RANKS FILE ARGUMENTS

imports the libraries once, forks the ranks and waits for them.
"""

import os
import runpy
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import free_port
from tokenuq_ml.stages.preloaded import MODULES


def run_ranks(file: str | Path, *arguments: str | Path, ranks: int = 2) -> None:
    """Run a Python file in every rank, each with one thread, and wait until all have ended well."""
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    env |= {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.support.ranks", str(ranks), str(file), *map(str, arguments)]
    # A group of its own, so that a rank that hangs is killed with the others.
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(ranks: int, command: list[str]) -> int:
    """Fork the ranks; return 0 if all have ended well. A rank that fails ends the others."""
    for module in MODULES:
        import_module(module)
    running = {fork(rank, command) for rank in range(ranks)}
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status:
            for other in running:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def fork(rank: int, command: list[str]) -> int:
    """Return the pid of a fork that runs the file as a program."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
