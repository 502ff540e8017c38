"""Run a stage in ranks that Ray Train places on the nodes of a cluster: for as many as no single node has room for.

`python -m tokenuq_ml.stages.train_on_ray N MODULE REQUEST.json` is torchrun of the same command on several nodes, with
the same exit codes. Ray Train reserves all ranks together, places them, and starts them again when a node is lost. The
stage then resumes from its checkpoint, which is in its folder of checkpoints: Ray's storage holds nothing.

A rank is a child process of Ray Train's worker (`rank_process.py`). In the worker itself the stage would run in a
thread, where no signal interrupts a training for its checkpoint, and its exit code would be an actor that has died. So
the group is that of the children, and `_Meeting` gives them the address; `TorchConfig` would join the workers.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, ORPHAN_GRACE_S, PARENT_PIPE, ParentWatch, kill_group
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.stages.rank_failures import RankFailure, told_in
from tokenuq_ml.stages.rank_process import INTERRUPT, START, RankProgram, ends_in
from tokenuq_ml.stages.ray_connection import cluster_nodes, connect, reserved_by_process
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.stages.thread_waits import thread_waits

USAGE = "usage: python -m tokenuq_ml.stages.train_on_ray N MODULE REQUEST.json"
RANKS = "ranks"
"""Folder next to the request: what the ranks say."""
STORAGE = "ray"
"""Folder in it, of Ray Train."""
RESTARTS = 3
"""How often all ranks are started again after a lost node, before the stage fails."""
POLL_S = 0.25
VARIABLES = "TOKENUQ_JOB_VARIABLES"
"""Environment variable: names of the variables that the launcher gave the stage, separated by commas."""
PASSED = ("TOKENUQ_", "HF_", "DAGSTER_PIPES")
"""Beginnings of the names of variables that ranks get anyway."""


def main() -> None:
    """Start the ranks that the arguments name, wait for them, and exit as they did."""
    if len(sys.argv) != 4 or not sys.argv[1].isdigit() or int(sys.argv[1]) < 1:
        sys.exit(USAGE)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parent = ParentWatch.start()
    count, module, request_file = int(sys.argv[1]), *sys.argv[2:]
    try:
        code = _run(count, module, Path(request_file).absolute())
    except InputError as error:
        code = runner.report_refusal(str(error), Path(request_file).parent)
    except KeyboardInterrupt:
        code = runner.INTERRUPTED
    if parent.orphaned.is_set():
        kill_group()
    if parent.silent.is_set() and code == runner.INTERRUPTED:
        code = runner.PARENT_SILENT
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if code >= 0 else 128 - code)


def _run(count: int, module: str, request_file: Path) -> int:
    """Run the ranks; return the exit code, or minus the signal that killed the first of them."""
    request = StageRequest.read(request_file)
    connect()
    folder = request_file.parent / RANKS
    folder.mkdir(exist_ok=True)
    (folder / INTERRUPT).unlink(missing_ok=True)
    share = request.resources.share(count)
    program = RankProgram(module, str(request_file), folder, _environment(share), code_hash())
    errors: list[BaseException] = []
    # Ray Train handles SIGINT in the main thread: it kills the workers.
    thread = threading.Thread(target=_train, args=(program, count, share, errors), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        (folder / INTERRUPT).touch()
        # Ranks that wait for their nodes have nothing to write.
        if _starts(folder):
            thread.join(2 * ORPHAN_GRACE_S)
        return _outcome(folder, count, errors) or runner.INTERRUPTED
    return _outcome(folder, count, errors)


def _train(program: RankProgram, count: int, share: StageResources, errors: list[BaseException]) -> None:
    """Run the program in all ranks, by Ray Train."""
    # Ranks work where the stage does, not in a folder of Ray's.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.backend import Backend
        from ray.train.torch import TorchConfig, TorchTrainer

        class _Meeting(Backend):
            """Gives all ranks the address at which they meet, and the GPUs of their node; each takes its own."""

            share_cuda_visible_devices = True

            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                address, port = worker_group.execute_single(0, _free_address)
                worker_group.execute(_set_meeting, address, port, uuid.uuid4().hex)

        class _MeetingConfig(TorchConfig):
            @property
            def backend_cls(self) -> type[Backend]:
                return _Meeting

            @property
            def train_func_context(self) -> Any:
                return contextlib.nullcontext

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        gpus = sum(node.get("GPU", 0.0) for node in cluster_nodes())
        needs = reserved_by_process(share, gpus)
        trainer = TorchTrainer(
            program,
            torch_config=_MeetingConfig(),
            scaling_config=ScalingConfig(
                num_workers=count, use_gpu=bool(needs.get("GPU")), resources_per_worker=needs, placement_strategy="PACK"
            ),
            run_config=RunConfig(
                name="ranks",
                storage_path=str(program.folder / STORAGE),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        trainer.fit()
    except BaseException as error:
        errors.append(error)


def _free_address() -> tuple[str, int]:
    import ray

    with socket.socket() as one:
        one.bind(("", 0))
        return ray.util.get_node_ip_address(), one.getsockname()[1]


def _set_meeting(address: str, port: int, start: str) -> None:
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port), START: start})


def _environment(share: StageResources) -> dict[str, str]:
    """Return the variables of a rank: those of its stage that the launcher has named, and its threads."""
    named = os.environ.get(VARIABLES, "").split(",")
    kept = {name: value for name, value in os.environ.items() if name.startswith(PASSED) or name in named}
    for name in (PARENT_PIPE, LEASE_SECONDS):
        kept.pop(name, None)
    threads = os.environ.get(runner.THREADS) or str(max(1, int(share.num_cpus or 1)))
    fixed = {runner.THREADS: threads, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **thread_waits(os.environ), **fixed}


def _outcome(folder: Path, count: int, errors: list[BaseException]) -> int:
    """Report how the last start of the ranks ended; return the exit code."""
    starts = _starts(folder)
    ends = ends_in(starts[-1]) if starts else []
    for rank in range(count) if starts else ():
        for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
            path = starts[-1] / f"rank{rank}.{name}"
            if path.exists():
                stream.write(path.read_text(errors="replace"))
    failures = [
        RankFailure(end.rank, end.code, **told_in(starts[-1] / f"failure{end.rank}.json")) for end in ends if end.code
    ]
    if not failures:
        if len(ends) == count:
            return 0
        if (folder / INTERRUPT).exists():
            return runner.INTERRUPTED
        print(f"the ranks were lost {RESTARTS + 1} times: {_reason(errors)}", file=sys.stderr)
        return runner.BUG
    first = min(failures, key=lambda failure: failure.order)
    if first.sentence and first.rank:
        runner.report_refusal(first.sentence, folder.parent, first.code)
    elif not first.sentence and first.traceback:
        print(first.traceback, file=sys.stderr)
    return first.code


def _reason(errors: list[BaseException]) -> str:
    """Return the last line of what Ray Train says of the first worker that failed, or else the first one of it all."""
    if not errors:
        return "no rank has ended"
    failures = getattr(errors[0], "worker_failures", None) or {}
    if not failures:
        return str(errors[0]).strip().splitlines()[0]
    first = failures[min(failures)]
    lines = str(first).strip().splitlines()
    return lines[-1].strip().removeprefix("RuntimeError: ") if lines else type(first).__name__


def _starts(folder: Path) -> list[Path]:
    """Return the folders of the starts of the ranks, the last one at the end."""
    found = (path for path in folder.iterdir() if path.is_dir() and path.name != STORAGE)
    return sorted(found, key=lambda path: path.stat().st_ctime)


if __name__ == "__main__":
    main()
