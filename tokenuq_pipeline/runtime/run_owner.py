"""Record which process executes a run, so that others know later whether it still does.

Dagster's engine events name a pid only, which says nothing in another container, and its run monitoring asks a run
launcher that keeps no record of its processes. An executor is the first thing of ours that runs in a run's process.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import dagster as dg

from tokenuq_ml.background import looking
from tokenuq_pipeline.runtime.dagster_internals import (
    ExecutionPlan,
    PlanOrchestrationContext,
    RetryMode,
    StepDependencyConfig,
)
from tokenuq_pipeline.runtime.dev_server import ending_with_dev
from tokenuq_pipeline.runtime.instance import PROCESS_TAG, close_dead_runs
from tokenuq_pipeline.runtime.owners import Owner, beating
from tokenuq_pipeline.runtime.step_processes import passing_on_interrupts
from tokenuq_pipeline.runtime.step_server import handing_over

LOOK_S = 10.0
"""Seconds between two looks for dead runs, whose slots a run may be waiting for."""


def owned(executor: dg.ExecutorDefinition, home: Path) -> dg.ExecutorDefinition:
    """Return the same executor, which also records its process as the run's owner and keeps its heartbeat going.

    Args:
        executor: runs the steps.
        home: the store that holds the heartbeat.
    """

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        make = executor.executor_creation_fn
        assert make is not None
        return _OwnedExecutor(make(context), home, executor.name == dg.multiprocess_executor.name)

    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=cast(Any, executor.config_schema),
        requirements=executor.get_requirements,
        executor_creation_fn=create,
        description=executor.description,
    )


class _OwnedExecutor(dg.Executor):
    def __init__(self, inner: dg.Executor, home: Path, has_step_processes: bool):
        self._inner, self._home, self._has_step_processes = inner, home, has_step_processes

    @property
    def retries(self) -> RetryMode:
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._inner.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        instance, run = plan_context.instance, plan_context.dagster_run
        with ending_with_dev(), contextlib.ExitStack() as stack:
            # Where the store cannot be written, the first step says so.
            with contextlib.suppress(OSError):
                stack.enter_context(beating(self._home))
            instance.add_run_tags(run.run_id, {PROCESS_TAG: str(Owner.current())})
            if not instance.is_ephemeral:
                stack.enter_context(_closing_dead_runs(instance, self._home))
            if self._has_step_processes:
                stack.enter_context(passing_on_interrupts())
                stack.enter_context(handing_over(plan_context.reconstructable_job))
            yield from self._inner.execute(plan_context, execution_plan)


@contextlib.contextmanager
def _closing_dead_runs(instance: dg.DagsterInstance, home: Path) -> Iterator[None]:
    """Close dead runs every few seconds, from a thread: one of them may hold the slot that this run waits for."""

    def look() -> bool:
        # The database may be locked or away. This is upkeep: the next look tries again.
        with contextlib.suppress(Exception):
            close_dead_runs(instance, home)
        return False

    with looking(look, LOOK_S, "dead-runs"):
        yield
