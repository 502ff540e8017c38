"""What stages have in their environment, on this machine and on a cluster."""

import pytest

from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.thread_waits import CHOSEN, thread_waits
from tokenuq_pipeline.runtime.launchers.job_environment import job_environment
from tokenuq_pipeline.runtime.launchers.local import stage_environment

REQUEST = StageRequest(
    entrypoint="train_student",
    assets={"student": AssetRequest(fields={}, code_version="1-c", outputs={})},
    inputs={},
    work_dir="work",
)


@pytest.mark.parametrize("chosen", [{}, *({name: "7"} for name in CHOSEN)])
def test_threads_spin_for_a_short_time_or_as_a_person_says(chosen, monkeypatch):
    for name in CHOSEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    for environment in (stage_environment(), job_environment(REQUEST)):
        assert {name: environment[name] for name in CHOSEN if name in environment} == (chosen or thread_waits({}))
