"""Steps of a run in processes of their own, side by side: which executor runs them, how they start, how they end.

Dagster's multiprocess executor starts a process for each step, and interrupts them all when the run is interrupted. The
processes are forked from one that has imported what they need, which takes a second for each otherwise. The pool
`accelerator` limits how many of them load a model.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import dagster as dg

from tokenuq_ml.background import looking
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.instance import PROCESS_TAG
from tokenuq_pipeline.runtime.launchers.choice import models_at_once, uses_ray
from tokenuq_pipeline.runtime.owners import Owner

EXECUTOR_VARIABLE = "TOKENUQ_EXECUTOR"
EXECUTORS = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}
STEPS = 32
"""Steps of a run at once whose stages run on a cluster: as many processes that wait. The pool of models limits those
that load one."""
START: dict[str, Any] = {
    "forkserver": {
        "preload_modules": [
            "tokenuq_pipeline.runtime.step_server",
            "dagster._core.executor.multiprocess",
            "tokenuq_pipeline.build_defs",
        ]
    }
}
LOOK_S = 1.0


def steps_at_once(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many steps of a run work at once at most.

    On this machine one per core, as by Dagster's default, or more if more models fit: their stages wait for GPUs.

    Raises:
        InputError: a variable has a wrong value.
    """
    if uses_ray(environment):
        return STEPS
    return max(models_at_once(environment) or 1, min(os.cpu_count() or 1, STEPS))


def named_executor(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the executor that `$TOKENUQ_EXECUTOR` names; None if it names none.

    Raises:
        InputError: there is no such executor.
    """
    name = environment.get(EXECUTOR_VARIABLE) or None
    if name is not None and name not in EXECUTORS:
        raise InputError(f"{EXECUTOR_VARIABLE}: unknown executor {name!r}; allowed: {', '.join(EXECUTORS)}")
    return name


def steps_side_by_side(several_fit: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether steps have processes of their own: `$TOKENUQ_EXECUTOR` says so, or several models fit.

    Otherwise they run in the process of their run, one after another: the heavy work is in child processes anyway.

    Args:
        several_fit: several stages with a model run at once.
        environment: may name the executor.

    Raises:
        InputError: there is no such executor.
    """
    name = named_executor(environment)
    return several_fit if name is None else name == dg.multiprocess_executor.name


@contextlib.contextmanager
def ending_with_run(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Kill this process if it is a step's own, and the process of the run has been killed.

    Nobody could cancel the step any more. Its stage sees that this process is gone, as if the run had made it itself: a
    child writes a checkpoint and ends, and a job of a cluster is followed by the next run.
    """
    run = context.instance.get_run_by_id(context.run_id)
    owner = Owner.parse(run.tags.get(PROCESS_TAG, "")) if run else None
    if owner is None or owner == Owner.current() or not owner.is_local:
        yield
        return

    def look() -> bool:
        if not owner.runs_here():
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    with looking(look, LOOK_S, "run-watch"):
        yield


@contextlib.contextmanager
def passing_on_interrupts() -> Iterator[None]:
    """Send every interrupt of this process after the first one to its steps, whose stages it kills.

    The multiprocess executor passes on the first. Steps do not get those of the terminal (`step_server.py`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        for child in multiprocessing.active_children() if seen > 1 else ():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)
        if callable(handler := before[signal.Signals(number)]):
            handler(number, frame)

    changed = {number for number, handler in before.items() if callable(handler)}
    for number in changed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])
