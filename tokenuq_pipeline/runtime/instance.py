"""Keeps a Dagster instance fit: slots for models, and an end for runs whose process is gone.

The command line and `python -m tokenuq_pipeline.runtime.paths` (before the UI) call `prepare`. Knows runs and
pools; does not know assets.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.processes import is_alive

ACCELERATOR = "accelerator"
"""The pool of every stage that loads a model: as many at once as there are slots."""
SLOTS_VARIABLE = "TOKENUQ_ACCELERATOR_SLOTS"
PROCESS_TAG = "tokenuq/process"
CLOCK_SLACK_S = 5.0


def prepare(instance: dg.DagsterInstance, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Close dead runs, free their slots, set the number of slots; returns what was done, in words.

    Raises:
        InputError: the variable for the number of slots holds none.
    """
    return close_dead_runs(instance) + set_slots(instance, environment)


def set_slots(instance: dg.DagsterInstance, environment: Mapping[str, str]) -> list[str]:
    """As many slots as the variable says; without it what was set before, in the UI perhaps, and one at first."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    text = environment.get(SLOTS_VARIABLE)
    if text is not None and not (text.isdigit() and int(text) > 0):
        raise InputError(f"{SLOTS_VARIABLE}: must be a whole number above 0, is {text!r}")
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits()}
    wanted = int(text) if text else limits.get(ACCELERATOR, 1)
    if limits.get(ACCELERATOR) == wanted:
        return []
    storage.set_concurrency_slots(ACCELERATOR, wanted)
    return [f"{wanted} slot{'s' if wanted > 1 else ''} in the pool {ACCELERATOR}"]


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the record of runs whose process is gone: killed, it could not do so itself. Frees what they held."""
    done = []
    statuses = [*IN_PROGRESS_RUN_STATUSES, dg.DagsterRunStatus.NOT_STARTED]
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if _is_dead(run, instance):
            if run.status == dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "Its process is gone.")
            else:
                instance.report_run_failed(run, "Its process was killed.")
            done.append(f"run {run.run_id[:8]} marked as ended: its process is gone")
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for pool in storage.get_concurrency_keys():
            info = storage.get_concurrency_info(pool)
            # Steps that a dead run had queued for a slot keep others out of the queue too.
            for run_id in {*info.active_run_ids, *(step.run_id for step in info.pending_steps)}:
                run = instance.get_run_by_id(run_id)
                if run is None or run.is_finished:
                    storage.free_concurrency_slots_for_run(run_id)
                    done.append(f"slots of run {run_id[:8]} freed")
    return done


def _is_dead(run: dg.DagsterRun, instance: dg.DagsterInstance) -> bool:
    """Whether the run's process has ended; False where it cannot be told."""
    if PROCESS_TAG in run.tags:
        return not is_alive(run.tags[PROCESS_TAG])
    started = None
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        data = entry.dagster_event.event_specific_data
        text = data.metadata.get("pid") if isinstance(data, EngineEventData) else None
        # The first names the run's own process; later ones may name those of single steps.
        if text is not None:
            started = int(text.value), entry.timestamp
            break
    if started is None:
        return False
    pid, timestamp = started
    begun = _process_begin(pid)
    # A process that began after the event has only come by the same number.
    return begun is None or begun > timestamp + CLOCK_SLACK_S


def _process_begin(pid: int) -> float | None:
    """Seconds since the epoch at which the process began; None where there is none, 0 where it is not told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return None
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, StopIteration, IndexError):
        return 0.0
