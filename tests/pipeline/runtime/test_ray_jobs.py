"""Stages as jobs of a stand-in for a cluster: followed by the next run, interrupted, lost."""

import signal
import subprocess
import sys
import threading

import pytest

from tests.support.fake_cluster import FakeCluster
from tests.support.processes import wait_until
from tests.support.stage_jobs import attempts, behave, failure, job_launcher, materialise_in, pids_in, set_up_jobs
from tests.support.toy_pipeline import Toy
from tokenuq_ml.stages import job_files
from tokenuq_pipeline.runtime.instance import prepare
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.job_folders import beating_for, jobs_in
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.slow
rare = pytest.mark.heavy
MODEL = ["models", "tiny"]
CODE = """
import sys
from pathlib import Path
from tests.support.fake_cluster import FakeCluster
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
toy, cluster = Toy(Path(sys.argv[1])), FakeCluster(Path(sys.argv[2]))
launcher = StageLauncher(package="fake_entrypoints", termination_timeout=20.0, backend=RayBackend(cluster))
with toy.instance() as instance:
    sys.exit(run_study(toy.defs(launcher=launcher), toy_config(), STUDY, [], instance, toy.store))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    set_up_jobs(monkeypatch, tmp_path, lease_s=3)
    return Toy(tmp_path / "toy")


@pytest.fixture
def cluster(tmp_path):
    cluster = FakeCluster(tmp_path / "cluster")
    yield cluster
    cluster.kill()


def materialise(toy, backend, *keys):
    with toy.instance() as instance:
        # A run that was killed holds a slot.
        prepare(instance, toy.store.home, {})
        return materialise_in(instance, toy.defs(launcher=job_launcher(backend)), keys)


def work_dir(toy):
    return toy.store.home / ".checkpoints" / "models" / "tiny"


def waiting(toy):
    """The pids of the stage that waits or hangs, once it does."""
    pids = work_dir(toy) / "pids"
    wait_until(pids.exists)
    return pids_in(pids)


def start_run(toy, cluster):
    """A process that runs the study, once its first model's stage waits; and the pids of that."""
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, str(toy.folder), str(cluster.folder)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return run, waiting(toy)


def test_a_stage_runs_as_a_job_and_its_results_reach_the_run(toy, cluster, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame-open")
    result, messages = materialise(toy, RayBackend(cluster), MODEL)
    assert result.success and "working on models" in messages
    assert toy.store.is_complete("models/tiny") and not toy.store.problems("models/tiny")
    ((job, options),) = cluster.submitted.items()
    assert options["entrypoint_num_cpus"] == 1 and options["entrypoint_num_gpus"] is None
    assert options["metadata"] == {"dagster/run-id": result.run_id, "tokenuq/stage": "convert_model"}
    # Ray shows and logs what it is given.
    assert "sesame" not in str(options) and "DAGSTER_PIPES" not in str(options)
    with toy.instance() as instance:
        assert instance.get_run_by_id(result.run_id).tags["tokenuq/ray_job/models__tiny"] == job
    assert not jobs_in(work_dir(toy)) and not list((toy.store.home / ".staging").iterdir())


@rare
def test_failures_are_told_as_those_of_a_child_process(toy, cluster, tmp_path):
    behave(tmp_path, {"bad_input": "models", "crash": "datasets"})
    result, _ = materialise(toy, RayBackend(cluster), MODEL)
    assert failure(result) == "models.yaml: row 3: holds no answer; add one" and attempts(result) == 0
    result, _ = materialise(toy, RayBackend(cluster), ["datasets", "toy"])
    assert failure(result) == "load_dataset ended with exit code 1: RuntimeError: a bug in the stage"
    assert attempts(result) == 2
    behave(tmp_path, {"die_once": "models"})
    result, _ = materialise(toy, RayBackend(cluster), MODEL)
    assert result.success and attempts(result) == 1


def test_the_next_run_follows_the_job_of_a_run_that_was_killed(toy, cluster, tmp_path):
    behave(tmp_path, {"wait": "models"})
    run, (stage,) = start_run(toy, cluster)
    run.kill()
    run.communicate()
    threading.Timer(1.0, (work_dir(toy) / "go").touch).start()
    result, messages = materialise(toy, RayBackend(cluster), MODEL)
    assert result.success and toy.store.is_complete("models/tiny")
    assert not cluster.submitted and any("which an earlier run started" in message for message in messages)
    assert messages.count("working on models") == 1 and not is_running(stage)
    assert not jobs_in(work_dir(toy))


@rare
def test_the_next_run_publishes_what_a_job_has_completed_meanwhile(toy, cluster, tmp_path):
    behave(tmp_path, {"wait": "models"})
    run, (stage,) = start_run(toy, cluster)
    run.kill()
    run.communicate()
    (work_dir(toy) / "go").touch()
    wait_until(lambda: (jobs_in(work_dir(toy))[0].path / job_files.ENDED).exists())
    cluster.forget()
    result, _ = materialise(toy, RayBackend(cluster), MODEL)
    assert result.success and not cluster.submitted and toy.store.is_complete("models/tiny")


@rare
def test_a_cancelled_step_leaves_a_checkpoint_and_no_process(toy, cluster, tmp_path):
    behave(tmp_path, {"hang": "models"})
    run, pids = start_run(toy, cluster)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "resume from the last checkpoint" in out and "Traceback" not in out
    assert (work_dir(toy) / "checkpoint").read_text() == "step 7"
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert not jobs_in(work_dir(toy))


@rare
def test_a_step_that_is_cancelled_after_its_job_was_stopped_leaves_a_checkpoint(toy, cluster, tmp_path):
    behave(tmp_path, {"hang": "models", "slow": "models"})
    run, _ = start_run(toy, cluster)
    (job,) = jobs_in(work_dir(toy))
    cluster.stop(job.id)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert (work_dir(toy) / "checkpoint").read_text() == "step 7" and "Traceback" not in out


@rare
def test_a_local_launcher_first_ends_the_job_of_a_run_that_was_killed(toy, cluster, tmp_path):
    behave(tmp_path, {"hang": "models"})
    run, pids = start_run(toy, cluster)
    run.kill()
    run.communicate()
    behave(tmp_path, {})
    launcher = StageLauncher(package="fake_entrypoints")
    result, messages = materialise(toy, launcher.backend, MODEL)
    assert result.success and (work_dir(toy) / "checkpoint").read_text() == "step 7"
    assert any("has written its checkpoint" in message for message in messages)
    assert not any(is_running(pid) for pid in pids) and not jobs_in(work_dir(toy))


@rare
def test_a_job_that_makes_something_else_is_ended_first(toy, cluster, tmp_path, monkeypatch):
    behave(tmp_path, {"hang": "models"})
    run, pids = start_run(toy, cluster)
    run.kill()
    run.communicate()
    behave(tmp_path, {})
    other = FakeCluster(tmp_path / "other")
    result, _ = materialise(toy, RayBackend(other), MODEL)
    assert result.success and len(other.submitted) == 1 and (work_dir(toy) / "checkpoint").exists()
    assert not any(is_running(pid) for pid in pids)


@rare
@pytest.mark.parametrize("forgotten", [False, True], ids=["node lost", "head restarted"])
def test_a_lost_job_is_started_again(toy, cluster, tmp_path, forgotten):
    behave(tmp_path, {"hang": "models"})

    def lose():
        waiting(toy)
        behave(tmp_path, {})
        cluster.kill()
        if forgotten:
            cluster.forget()

    thread = threading.Thread(target=lose)
    thread.start()
    result, messages = materialise(toy, RayBackend(cluster), MODEL)
    thread.join()
    assert result.success and attempts(result) == 1 and len(cluster.submitted) == 2
    assert messages.count("working on models") == 2
    # Its node may only be cut off: nothing is started before the job has been silent for long enough.
    assert any("has written its checkpoint" in message for message in messages)


@rare
def test_a_job_that_nobody_follows_writes_a_checkpoint_and_ends(toy, cluster, tmp_path, monkeypatch):
    behave(tmp_path, {"hang": "models"})
    run = threading.Thread(target=lambda: materialise(toy, RayBackend(cluster, RaySettings(unattended_s=1.0)), MODEL))
    # The run is there until the stage works.
    there = lambda job, _: beating_for(job, lambda: not (work_dir(toy) / "pids").exists())  # noqa: E731
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_jobs.beating_for", there)
    run.start()
    pids = waiting(toy)
    run.join()
    assert (work_dir(toy) / "checkpoint").read_text() == "step 7" and not any(is_running(pid) for pid in pids)


@rare
def test_a_job_that_waits_for_resources_is_told_and_can_be_cancelled(toy, cluster, monkeypatch):
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_stage.TOLD_S", 0.1)
    cluster.waits = True

    def cancel():
        wait_until(lambda: cluster.submitted)
        threading.Event().wait(1.0)
        cluster.stop(next(iter(cluster.submitted)))

    thread = threading.Thread(target=cancel)
    thread.start()
    result, messages = materialise(toy, RayBackend(cluster), MODEL)
    thread.join()
    assert failure(result) == "convert_model was interrupted"
    assert any("waits: it waits for resources" in message for message in messages)
    assert not jobs_in(work_dir(toy))


@rare
def test_a_node_that_does_not_see_the_store_is_one_sentence(toy, cluster, monkeypatch):
    backend = RayBackend(cluster, RaySettings(python="sh -c 'echo no such folder >&2; exit 1' --"))
    result, _ = materialise(toy, backend, MODEL)
    assert "has not started: no such folder" in failure(result) and attempts(result) == 0
    python = f"sh -c 'exec {sys.executable} -m tokenuq_ml.stages.cluster_job /elsewhere/$(basename $3)' --"
    result, _ = materialise(toy, RayBackend(cluster, RaySettings(python=python)), MODEL)
    said = failure(result)
    assert "this node does not see /elsewhere/tokenuq-" in said and attempts(result) == 0
    assert said.endswith("or the folder TOKENUQ_CACHE of a store in a bucket, under the same path")


@rare
def test_other_code_on_the_cluster_is_refused(toy, cluster, monkeypatch):
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_jobs.code_hash", lambda: "0123456789ab")
    result, _ = materialise(toy, RayBackend(cluster), MODEL)
    assert "is not that of this run (0123456789ab): install the same version there" in failure(result)


@rare
def test_a_cluster_that_does_not_answer_is_one_sentence(toy, cluster, monkeypatch):
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_jobs.CLUSTER_WAIT_S", 0.1)
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_cluster.CONNECT_POLL_S", 0.1)
    cluster.away = True
    result, messages = materialise(toy, RayBackend(cluster), MODEL)
    assert failure(result).startswith("the Ray cluster does not answer: RAY_ADDRESS=fake://")
    assert any("waiting for the Ray cluster" in message for message in messages) and attempts(result) == 0
