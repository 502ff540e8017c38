"""Resources and executors whose settings a run's configuration cannot change.

Dagster shows every setting of a resource in the launchpad, and takes it from whoever launches a run. Which package a
stage's program is in, where the store is, and which modules a process imports are decided where the code is loaded.
"""

from typing import Any

import dagster as dg

from tokenuq_pipeline.runtime.step_processes import START, steps_at_once


def fixed_resource(value: Any) -> dg.ResourceDefinition:
    """Return a resource that is `value` and accepts no configuration.

    A plain object as resource accepts any configuration, and ignores it without a word.
    """
    return dg.ResourceDefinition(lambda _: value, config_schema={}, description=f"{type(value).__name__}; fixed")


def fixed_io_manager() -> dg.IOManagerDefinition:
    """Return an IO manager without settings; the default one has a folder. Stages write to the store and use none."""
    return dg.IOManagerDefinition(lambda _: dg.InMemoryIOManager(), config_schema={})


def fixed_executor(executor: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Return the executor with only those settings that are numbers: how many steps run at once.

    Others name modules that the processes of steps would import.
    """
    schema: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    if executor.name == dg.multiprocess_executor.name:
        schema["max_concurrent"] = dg.Field(dg.Noneable(int), is_required=False, description="steps at once")
        defaults = {"max_concurrent": steps_at_once(), "start_method": START}
    return executor.configured(lambda config: {**defaults, **config}, config_schema=schema, name=executor.name)
