"""A job of three steps in processes of their own, which writes a line to $COUNTED_JOB whenever it is built."""

import os
from collections import deque
from pathlib import Path

import dagster as dg

from tokenuq_pipeline.runtime.dagster_internals import ReconstructableJob, run_job
from tokenuq_pipeline.runtime.fixed_config import fixed_executor
from tokenuq_pipeline.runtime.run_owner import owned

COUNT = "COUNTED_JOB"


def job() -> dg.JobDefinition:
    """Return the job."""
    file = Path(os.environ[COUNT])
    with file.open("a") as lines:
        lines.write(f"{os.getpid()}\n")

    @dg.op
    def step(context) -> None:
        (file.parent / context.op_handle.name).write_text(str(os.getpid()))

    executor = owned(fixed_executor(dg.multiprocess_executor), file.parent)

    @dg.job(name="counted", executor_def=executor)
    def counted():
        for name in ("a", "b", "c"):
            step.alias(name)()

    return counted


if __name__ == "__main__":
    with dg.instance_for_test() as instance:
        run = instance.create_run_for_job(job())
        deque(run_job(ReconstructableJob.for_module("tests.support.counted_job", "job"), run, instance), maxlen=0)
        assert instance.get_run_by_id(run.run_id).is_success
