"""What failed in one run: each failure as one error, with the number of assets that wait for it.

Dagster logs a failure once for the step and once more for every step that depends on it. `tokenuq run` and the console
of the UI's runs collect failures here instead, and print each once, at the end of the run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.tables.partitions import store_folder
from tokenuq_pipeline.runtime.dagster_internals import STEP_CRASHED, exception_of_run
from tokenuq_pipeline.runtime.full_disks import full_disk_of_run

REPORTED_OTHERWISE = {"DagsterAssetCheckFailedError", "DagsterExecutionInterruptedError"}
"""Errors of a step that the failed check, or the interrupted run, already reports."""


@dataclass(frozen=True)
class RunPlan:
    """What a run is to make.

    Attributes:
        steps: op name -> the assets that its step makes in this run, in order.
        parents: asset -> its inputs, also of assets that the run does not make.
        targets: assets that are to be up to date after this run and those that follow it; they wait as well.
    """

    steps: Mapping[str, Sequence[dg.AssetKey]]
    parents: Mapping[dg.AssetKey, Iterable[dg.AssetKey]]
    targets: Collection[dg.AssetKey] = ()

    @classmethod
    def of_job(cls, job: dg.JobDefinition) -> "RunPlan":
        """Return the plan of a run of the selected assets of a job."""
        selected, graph = job.asset_layer.selected_asset_keys, job.asset_layer.asset_graph
        steps: dict[str, list[dg.AssetKey]] = {}
        for key in graph.toposorted_asset_keys:
            if key in selected and graph.get(key).is_materializable:
                steps.setdefault(graph.assets_def_for_key(key).op.name, []).append(key)
        return cls(steps, {key: graph.get(key).parent_keys for key in graph.get_all_asset_keys()})


@dataclass(frozen=True)
class _Failure:
    sentence: str
    assets: tuple[dg.AssetKey, ...]
    """What failed first, then what its step would have made after it; empty for a failure outside any step."""


class Failures:
    """Collects the failures of one run from its events.

    Attributes:
        sees_run: the start of the run was seen, so its end will be seen too.
    """

    def __init__(self, plan: RunPlan):
        """Start with no failure.

        Args:
            plan: what the run is to make.
        """
        self.sees_run = False
        self._plan = plan
        self._found: dict[str, _Failure] = {}
        self._made: set[dg.AssetKey] = set()

    def see(self, event: dg.DagsterEvent) -> str | None:
        """Note an event. Returns the name of what has failed, if that is what the event says."""
        kinds, before = dg.DagsterEventType, len(self._found)
        if event.event_type == kinds.RUN_START:
            self.sees_run = True
        elif event.event_type == kinds.ASSET_MATERIALIZATION and event.asset_key is not None:
            self._made.add(event.asset_key)
        elif event.event_type == kinds.ASSET_CHECK_EVALUATION:
            self._checked(event)
        elif event.event_type == kinds.STEP_FAILURE:
            self._step_failed(event)
        elif event.event_type == kinds.RUN_FAILURE and (message := exception_of_run(event)) is not None:
            self._found[""] = _Failure(f"failed: {_full_disk(message) or message}", ())
        if len(self._found) == before:
            return None
        last = list(self._found.values())[-1]
        return last.assets[0].to_user_string() if last.assets else "the run"

    def errors(self) -> list[str]:
        """Return each failure with the number of assets that wait for it."""
        return [f"{failure.sentence}\n{self._waiting(failure)}".rstrip() for failure in self._found.values()]

    def waiting(self) -> set[dg.AssetKey]:
        """Return what is not made because of the failures."""
        found: set[dg.AssetKey] = set()
        for failure in self._found.values():
            found.update(failure.assets[1:], _descendants(self._plan.parents, failure.assets))
        return found

    def _checked(self, event: dg.DagsterEvent) -> None:
        check = event.asset_check_evaluation_data
        if not check.passed and check.blocking and check.severity == dg.AssetCheckSeverity.ERROR:
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            assets = (check.asset_key, *self._not_made(event.step_key))
            self._found[name] = _Failure(f"check failed: {name}: {check.description}", assets)

    def _step_failed(self, event: dg.DagsterEvent) -> None:
        error = event.step_failure_data.error
        if error is None or error.cls_name not in REPORTED_OTHERWISE:
            step = event.step_key or ""
            self._found[step] = _Failure(f"failed: {_reason(event)}", self._not_made(step))

    def _not_made(self, step: str | None) -> tuple[dg.AssetKey, ...]:
        return tuple(key for key in self._plan.steps.get(step or "", ()) if key not in self._made)

    def _waiting(self, failure: _Failure) -> str:
        """Return where the failure was, and how many assets are not made because of it."""
        if not failure.assets:
            return ""
        first, *others = failure.assets
        planned = {key for keys in self._plan.steps.values() for key in keys} | set(self._plan.targets)
        waiting = {*others, *_descendants(self._plan.parents, failure.assets)} & planned - self._made - {first}
        count = len(waiting)
        who = "no other asset waits" if not count else "1 asset waits" if count == 1 else f"{count} assets wait"
        return f"in {first.to_user_string()}; {who} for it"


def _innermost(error: Any) -> Any:
    """Return the exception at the start of the chain of causes; None without one."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error


def _reason(event: dg.DagsterEvent) -> str:
    """Return the message of a failed step; for a bug, its exception and where to find the traceback."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    if data.error is None:
        return f"{event.step_key}, for an unknown reason"
    if data.error.cls_name == STEP_CRASHED:
        return "the process of the step was killed; run the same command again: a training resumes from its checkpoint"
    error = _innermost(data.error)
    message = error.message.strip()
    if error.cls_name == StoreAway.__name__:
        # No bug: the sentence says it all, and has the exception's class before it.
        return message.partition(": ")[2]
    run = (event.logging_tags or {}).get("run_id", "")
    return _full_disk(message) or f"{message} (traceback: `make ui`, run {run})"


def _full_disk(message: str) -> str | None:
    """Return which disk is full if an error says so, as Dagster's does where it records what a step has done."""
    return full_disk_of_run(message, store_folder())


def _descendants(
    parents: Mapping[dg.AssetKey, Iterable[dg.AssetKey]], keys: Iterable[dg.AssetKey]
) -> Iterator[dg.AssetKey]:
    children: dict[dg.AssetKey, list[dg.AssetKey]] = {}
    for key, above in parents.items():
        for parent in above:
            children.setdefault(parent, []).append(key)
    seen, todo = set(keys), list(keys)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in seen:
                seen.add(child)
                todo.append(child)
                yield child
