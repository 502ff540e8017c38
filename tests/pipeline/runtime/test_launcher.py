"""Stages in real child processes: their messages, their failures, and that none outlives its parent."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading

import dagster as dg
import pytest

from tests.support.manifests import write
from tests.support.processes import wait_until
from tests.support.toy_pipeline import STUDY, Toy, fake_environment
from tokenuq_ml.process_group import RANK_VARIABLES
from tokenuq_ml.stages.parent_watch import PARENT_PIPE
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES_VARIABLE
from tokenuq_pipeline.runtime.folder_lock import lock_folder
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.local import stage_environment
from tokenuq_pipeline.runtime.launchers.preloaded import PRELOAD, preloaded
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.slow
CODE = """
import sys
from pathlib import Path
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
toy = Toy(Path(sys.argv[1]))
launcher = StageLauncher(package="fake_entrypoints", termination_timeout=float(sys.argv[2]))
with toy.instance() as instance:
    sys.exit(run_study(toy.defs(launcher=launcher), toy_config(), STUDY, [], instance, toy.store))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    for name, value in fake_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return Toy(tmp_path / "toy")


def materialise(toy, *keys):
    with toy.instance() as instance:
        result = (
            toy.defs(launcher=StageLauncher(package="fake_entrypoints"))
            .resolve_job_def(STUDY)
            .execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey(key) for key in keys], raise_on_error=False
            )
        )
        return result, [entry.message for entry in instance.all_logs(result.run_id)]


def start_study(toy, behaviour, timeout=30.0):
    """A process that runs the study, once its first model's stage hangs; with the pids of stage and grandchild."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(toy.folder), str(timeout)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "FAKE_STAGE": json.dumps({behaviour: "models"})},
    )
    pids = toy.store.home / ".checkpoints" / "models" / "tiny" / "pids"
    wait_until(lambda: pids.exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    return process, [int(pid) for pid in pids.read_text().split()], pids.with_name("checkpoint")


def test_a_stage_does_not_see_the_address_of_dagsters_records_or_another_group(toy, monkeypatch):
    """A run that torchrun has started is no rank of its stages, which would wait for others."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    environments, start = [], subprocess.Popen
    monkeypatch.setenv(POSTGRES_VARIABLE, "postgresql://user:sesame@host/records")
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, env=None, **k: environments.append(env) or start(*a, env=env, **k)
    )
    result, _ = materialise(toy, ["models", "tiny"])
    (environment,) = (env for env in environments if env and PARENT_PIPE in env)
    assert result.success and POSTGRES_VARIABLE not in environment and "sesame" not in str(environment)
    assert not RANK_VARIABLES & set(environment)


@pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux")
def test_a_stage_with_a_model_is_forked_where_the_libraries_are_loaded(toy, made_study, monkeypatch):
    made_study.copy(toy.folder)
    monkeypatch.setenv(PRELOAD, "1")
    started, start = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **k: started.append(command) or start(command, **k))
    with preloaded(stage_environment(), ["json"]):
        result, messages = materialise(toy, [STUDY, "mle", "student"])
        assert result.success and "working on student" in messages
        # Dagster starts programs too.
        assert not [command for command in started if "fake_entrypoints.train_student" in command]
        monkeypatch.setenv("FAKE_STAGE", json.dumps({"bad_input": "student"}))
        # Another environment: a program of its own.
        result, _ = materialise(toy, [STUDY, "mle", "student"])
    assert not result.success and [command for command in started if "fake_entrypoints.train_student" in command]


def test_a_childs_lines_and_results_reach_the_event_log(toy):
    result, messages = materialise(toy, ["models", "tiny"])
    assert result.success and "working on models" in messages
    assert toy.store.path("models/tiny/content").exists() and toy.store.is_complete("models/tiny")
    with toy.instance() as instance:
        event = next(
            e
            for e in instance.all_logs(result.run_id)
            if e.dagster_event and e.dagster_event.event_type == dg.DagsterEventType.LOGS_CAPTURED
        )
        key = [result.run_id, "compute_logs", event.dagster_event.event_specific_data.file_key]
        data = instance.compute_log_manager.get_log_data(key)
    assert b"progress bar of models" in data.stderr


def test_bad_input_is_the_complete_failure_message(toy, monkeypatch):
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"bad_input": "models"}))
    result, _ = materialise(toy, ["models", "tiny"])
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert data.user_failure_data.description == "models.yaml: row 3: holds no answer; add one"
    assert not toy.store.path("models/tiny").exists() and not list((toy.store.home / ".staging").iterdir())


def attempts(result):
    """Steps that were tried again."""
    return [event.step_key for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


def test_bad_input_is_not_retried(toy, monkeypatch):
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"bad_input": "models"}))
    assert attempts(materialise(toy, ["models", "tiny"])[0]) == []


def test_a_killed_stage_is_retried_without_repeating_its_finished_assets(toy, monkeypatch):
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRY_DELAY_S", 0)
    study = [["models", "tiny"], ["datasets", "toy"], ["datasets", "extra"], [STUDY, "tokenized_dataset"]]
    assert materialise(toy, *study, [STUDY, "baseline_teacher"])[0].success
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"die_once": "token_uncertainty"}))
    stages = ("token_losses", "teacher_hidden", "token_uncertainty", "reference_evaluation")
    result, messages = materialise(toy, *([STUDY, stage] for stage in stages))
    assert result.success and attempts(result) == [f"{STUDY}__measure"]
    assert [messages.count(f"working on {stage}") for stage in stages] == [1, 1, 2, 1]
    assert all(toy.store.is_complete(f"{STUDY}/{stage}") for stage in stages)


def test_a_bug_fails_with_its_last_line_and_the_tail_of_stderr(toy, monkeypatch):
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRY_DELAY_S", 0)
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"crash": "models"}))
    result, _ = materialise(toy, ["models", "tiny"])
    assert len(attempts(result)) == 2
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data.user_failure_data
    assert data.description == "convert_model ended with exit code 1: RuntimeError: a bug in the stage"
    assert "Traceback" in data.metadata["stderr"].value


def test_ctrl_c_lets_the_stage_write_its_checkpoint_and_leaves_no_process(toy):
    process, pids, checkpoint = start_study(toy, "hang")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and checkpoint.read_text() == "step 7"
    assert "run the same command again to resume from the last checkpoint" in out and "Traceback" not in out
    assert not any(is_running(pid) for pid in pids)
    assert not list((toy.store.home / ".staging").iterdir())


def test_a_stage_that_does_not_stop_is_killed_with_its_group(toy):
    process, pids, checkpoint = start_study(toy, "stubborn", timeout=0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and not checkpoint.exists()
    wait_until(lambda: not any(is_running(pid) for pid in pids), 5)


def test_killing_the_parent_ends_every_child_process(toy):
    process, pids, checkpoint = start_study(toy, "hang")
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert checkpoint.read_text() == "step 7"


def test_a_second_run_waits_for_the_checkpoint_folder_of_the_first(tmp_path):
    said = []
    descriptor = os.open(tmp_path / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    entered = threading.Event()

    def enter():
        with lock_folder(tmp_path, said.append):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3) and said == ["waiting for another run of this stage to end"]
    os.close(descriptor)
    assert entered.wait(10)
    thread.join()


def test_a_killed_stage_is_retried_over_a_store_of_an_earlier_version(toy, monkeypatch):
    """As versions before provenance wrote them."""
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRY_DELAY_S", 0)
    assert materialise(toy, ["models", "tiny"])[0].success
    path = toy.store.home / ".manifests" / "models" / "tiny.json"
    manifest = json.loads(path.read_text())
    del manifest["provenance"]
    write(path, manifest)
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"die_once": "models"}))
    result, _ = materialise(toy, ["models", "tiny"])
    assert result.success and attempts(result) == ["models__tiny"]
