"""Start a stage in several processes by torchrun's agent, and end with the exit code of the stage.

`python -m tokenuq_ml.stages.several_processes N|auto MODULE REQUEST.json` is `torchrun --standalone --nproc-per-node N
-m MODULE REQUEST.json`, by the same classes, with what a launcher of stages needs and the command does not give:

- The exit code is that of the process that failed first, where torchrun's is always 1, and so is the signal. The
  sentence of a rank other than 0 is reported from here.
- The parent is watched here (`parent_watch.py`), since torchrun's processes do not inherit its pipe. SIGINT reaches
  every process as SIGINT, and they write one checkpoint.
- Threads: each process has its share of the cores, or `TOKENUQ_THREADS`. torchrun gives each one.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, ORPHAN_GRACE_S, PARENT_PIPE, ParentWatch, kill_group
from tokenuq_ml.stages.rank_failures import RankFailure

USAGE = "usage: python -m tokenuq_ml.stages.several_processes N|auto MODULE REQUEST.json"
LOGS = "processes"
"""Folder next to the request: what each process has to say of its failure."""


def main() -> None:
    """Start the processes that the arguments name, wait for them, and exit as they did."""
    if len(sys.argv) != 4:
        sys.exit(USAGE)
    asked, module, request_file = sys.argv[1:]
    # A process that a shell starts in the background inherits an ignored SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        count = _count(asked)
    except InputError as error:
        sys.exit(runner.report_refusal(str(error), Path(request_file).parent))
    if count == 1:
        os.execv(sys.executable, [sys.executable, "-m", module, request_file])
    parent = ParentWatch.start()
    code = _launch(count, module, request_file)
    if parent.orphaned.is_set():
        kill_group()
    if parent.silent.is_set() and code == runner.INTERRUPTED:
        code = runner.PARENT_SILENT
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _count(asked: str) -> int:
    """Return how many processes are started.

    Raises:
        InputError: it is no number, or this machine has fewer GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    if asked == "auto":
        return max(1, gpus)
    if not asked.isdigit() or int(asked) < 1:
        raise InputError(f"processes: {asked!r} is not a number from 1 or auto")
    if 0 < gpus < int(asked):
        raise InputError(
            f"processes: {asked} processes need a GPU each, and {gpus} are visible; set `processes: auto` in the study "
            "or TOKENUQ_PROCESSES=auto"
        )
    return int(asked)


def _launch(count: int, module: str, request_file: str) -> int:
    """Run the processes; return the exit code, or minus the signal that killed the first of them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    # They describe failures that the exit code and the sentence tell.
    logging.disable(logging.CRITICAL)
    _set_environment(count)
    staging = Path(request_file).parent
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(staging / LOGS)),
        signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=int(ORPHAN_GRACE_S),
    )
    try:
        launch_agent(config, sys.executable, ["-m", module, request_file])
    except ChildFailedError as error:
        return _report(error.failures.values(), staging)
    except (SignalException, KeyboardInterrupt):
        return runner.INTERRUPTED
    return 0


def _set_environment(count: int) -> None:
    """Set what the processes inherit: their threads, and no pipe that only this process has."""
    for name in (PARENT_PIPE, LEASE_SECONDS):
        os.environ.pop(name, None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get(runner.THREADS) or os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    os.environ[runner.THREADS] = os.environ["OMP_NUM_THREADS"] = given


def _report(failures: Iterable[Any], staging: Path) -> int:
    """Report the failure that came first, unless its process could; return its exit code."""
    first = min((RankFailure.of(failure) for failure in failures), key=lambda failure: failure.order)
    if first.sentence and first.rank:
        runner.report_refusal(first.sentence, staging, first.code)
    elif not first.sentence and first.traceback:
        print(first.traceback, file=sys.stderr)
    return first.code


if __name__ == "__main__":
    main()
