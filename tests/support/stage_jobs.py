"""Fake stages as jobs of a stand-in for a cluster: what their tests share."""

import json
from pathlib import Path

import dagster as dg

from tests.support.toy_pipeline import STUDY, fake_environment
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers import ray_stage


def set_up_jobs(monkeypatch, folder: Path, lease_s: int) -> None:
    """Set the variables of fake stages, which do what `behave` says, and let launchers look more often."""
    for name, value in fake_environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", str(lease_s))
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRY_DELAY_S", 0)
    monkeypatch.setattr(ray_stage, "LATE_S", 0.5)
    monkeypatch.setattr(ray_stage, "LOOK_S", 0.1)
    behave(folder, {})
    monkeypatch.setenv("FAKE_STAGE", f"@{folder / 'behaviour.json'}")


def behave(folder: Path, behaviour: dict[str, str]) -> None:
    """Say what the fake stages do from now on."""
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


def job_launcher(backend) -> StageLauncher:
    """Return a launcher of fake stages."""
    return StageLauncher(package="fake_entrypoints", termination_timeout=20.0, backend=backend)


def materialise_in(instance, defs, keys):
    """Materialise some assets of the toy study; return the result, and what was logged."""
    result = defs.resolve_job_def(STUDY).execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(key) for key in keys], raise_on_error=False
    )
    return result, [entry.message for entry in instance.all_logs(result.run_id)]


def failure(result) -> str:
    """Return what the run says of the step that failed."""
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    return data.user_failure_data.description


def attempts(result) -> int:
    """Return how often a step was tried again."""
    return len([event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"])


def pids_in(path: Path) -> list[int]:
    """Return the pids that a waiting or hanging stage has written."""
    return [int(pid) for pid in path.read_text().split()]
