"""Maintenance of the Dagster instance: pool slots and dead runs.

Whether a run's process still works is judged by the run's owner (`owners.py`), which its tag names: by pid on this
machine and in this PID namespace, elsewhere by the heartbeat in the store. The command line and
`python -m tokenuq_pipeline.runtime.paths` (before the UI starts) call `prepare`.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import IntegrityError

from tokenuq_pipeline.runtime.dagster_internals import IN_PROGRESS_RUN_STATUSES, process_of_event
from tokenuq_pipeline.runtime.launchers.choice import models_at_once
from tokenuq_pipeline.runtime.owners import Owner, clean_heartbeats, heartbeat_of
from tokenuq_pipeline.runtime.processes import is_running, started_at

ACCELERATOR = "accelerator"
"""The pool of every stage that loads a model. Its slots are how many such stages run at once."""
PROCESS_TAG = "tokenuq/process"
"""The tag of a run that holds the `Owner` that executes it: of a run from the UI, since its executor has started."""
ONLY_STALE_TAG = "tokenuq/only_stale"
"""The tag of a run that asks for what is stale; what another run makes meanwhile is used instead of made again."""
CLOCK_SLACK_S = 5.0
FIRST_STARTS = 5
"""Tries to set the number of slots."""
UNTAGGED_S = 300.0
"""Silence after which a run without tag counts as dead if it is starting, or if its pid does not run here: it may be in
another container, but its executor would have tagged it by then. Dagster's run monitoring gives a start 180 s."""


def prepare(instance: dg.DagsterInstance, home: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Close dead runs, free their slots and set the number of slots.

    Args:
        instance: what is maintained.
        home: the store, which holds the heartbeats of runs.
        environment: may name the number of slots.

    Returns:
        What was done, one sentence per action.

    Raises:
        InputError: `TOKENUQ_ACCELERATOR_SLOTS` is not a positive integer.
    """
    clean_heartbeats(home)
    return close_dead_runs(instance, home) + set_slots(instance, environment)


def set_slots(instance: dg.DagsterInstance, environment: Mapping[str, str]) -> list[str]:
    """Set the slots of the pool `accelerator` to the number in `$TOKENUQ_ACCELERATOR_SLOTS`.

    Without the variable, it is the number of models that a Ray cluster holds, if stages run there, or of the GPUs of
    this machine, if it has several: a stage that reserves more than one waits for them. Otherwise the number stays as
    it was set before, for example in the UI; at first it is one.

    Raises:
        InputError: the variable is not a positive integer.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    found = models_at_once(environment)
    for _ in range(FIRST_STARTS):
        limits = {pool.name: pool.limit for pool in storage.get_pool_limits()}
        wanted = found or limits.get(ACCELERATOR, 1)
        if limits.get(ACCELERATOR) == wanted:
            break
        # Of several first starts at once, all but one fail to insert the pool, and find it then.
        with contextlib.suppress(IntegrityError):
            storage.set_concurrency_slots(ACCELERATOR, wanted)
            return [f"pool {ACCELERATOR}: {wanted} slot{'s' if wanted > 1 else ''}"]
    return []


def slots(instance: dg.DagsterInstance) -> int:
    """Return how many stages with a model run at once."""
    storage = instance.event_log_storage
    pools = storage.get_pool_limits() if storage.supports_global_concurrency_limits else ()
    return next((pool.limit for pool in pools if pool.name == ACCELERATOR), 1)


def close_dead_runs(instance: dg.DagsterInstance, home: Path) -> list[str]:
    """Mark runs whose process has been killed as ended, and free the slots that they hold.

    A run that is suspended (Ctrl-Z) goes on later, but until then it keeps no slot from others, as it keeps no lease.

    Args:
        instance: what is maintained.
        home: the store, which holds the heartbeats of runs.

    Returns:
        What was done, one sentence per action.
    """
    return [*_mark_dead_runs(instance, home), *_free_slots(instance, home)]


def _mark_dead_runs(instance: dg.DagsterInstance, home: Path) -> Iterator[str]:
    statuses = [*IN_PROGRESS_RUN_STATUSES, dg.DagsterRunStatus.NOT_STARTED]
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if not _is_dead(run, instance, home):
            continue
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The process of the run no longer exists.")
        else:
            instance.report_run_failed(run, "The process of the run was killed.")
        yield f"run {run.run_id[:8]} marked as ended: its process no longer exists"


def _free_slots(instance: dg.DagsterInstance, home: Path) -> Iterator[str]:
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        # Steps that a dead run had queued for a slot would keep other steps out of the queue.
        for run_id in {*info.active_run_ids, *(step.run_id for step in info.pending_steps)}:
            run = instance.get_run_by_id(run_id)
            silent = run is not None and _is_silent(run, home)
            if run is None or run.is_finished or silent:
                storage.free_concurrency_slots_for_run(run_id)
                yield f"slots of run {run_id[:8]} freed{': it is suspended' if silent else ''}"


def _is_dead(run: dg.DagsterRun, instance: dg.DagsterInstance, home: Path) -> bool:
    """Return whether the run's process has ended; False if that is not known."""
    if PROCESS_TAG in run.tags:
        owner = Owner.parse(run.tags[PROCESS_TAG])
        # Without heartbeat here: the run may use another store.
        known = owner is not None and (owner.is_local or heartbeat_of(owner, home) is not None)
        return known and owner is not None and not owner.is_alive(home)
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        pid = process_of_event(entry.get_dagster_event())
        # The first event that names a process names the run's own; later ones may name those of single steps.
        if pid is not None:
            gone = not is_running(pid) or _started_after(pid, entry.timestamp)
            return gone and _silence(instance, run) > UNTAGGED_S
    # Whoever launched it may have been killed before the run's process existed.
    return run.status == dg.DagsterRunStatus.STARTING and _silence(instance, run) > UNTAGGED_S


def _is_silent(run: dg.DagsterRun, home: Path) -> bool:
    """Return whether the run's process has not renewed its heartbeat for so long that it has lost its leases."""
    owner = Owner.parse(run.tags.get(PROCESS_TAG, ""))
    beat = heartbeat_of(owner, home) if owner else None
    return beat is not None and beat.is_expired


def _silence(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float:
    """Return the seconds since the run's last event; 0 if it has none."""
    records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    return time.time() - records[0].timestamp if records else 0.0


def _started_after(pid: int, timestamp: float) -> bool:
    """Return whether the process started after the event, so that it only has the same pid."""
    started = started_at(pid)
    return started is not None and started > timestamp + CLOCK_SLACK_S
