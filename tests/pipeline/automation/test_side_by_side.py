"""`tokenuq run` with steps in processes of their own: at once, interrupted, killed, with the lines of one run."""

import json
import os
import re
import signal

import dagster as dg
import pytest

from tests.support.processes import wait_until
from tests.support.side_by_side import SideBySide, interrupt
from tests.support.toy_pipeline import STUDY, fake_environment
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.slow
rare = pytest.mark.heavy


@pytest.fixture
def study(made_study, tmp_path, monkeypatch):
    """The toy study, of which both students are missing."""
    for name, value in fake_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    toy = made_study.copy(tmp_path / "toy")
    for ablation in ("mle", "top"):
        toy.store.forget(f"{STUDY}/{ablation}/student")
    behaviour = tmp_path / "behaviour.json"
    behaviour.write_text("{}")
    study = SideBySide(toy, behaviour)
    yield study
    study.end()


@pytest.fixture
def on_cluster(study, tmp_path):
    """The same, whose stages are jobs of a cluster."""
    on_cluster = SideBySide(study.toy, tmp_path / "behaviour.json", tmp_path / "cluster")
    yield on_cluster
    on_cluster.end()


def behave(study, **behaviour):
    (study.toy.folder.parent / "behaviour.json").write_text(json.dumps(behaviour))


def waiting(study):
    return wait_until(lambda: len(found := study.waiting()) == 2 and found, 240)


def said(run, code):
    out, _ = run.communicate(timeout=240)
    assert run.returncode == code, out
    return out


def test_jobs_of_a_cluster_run_at_once_and_each_line_names_its_asset(on_cluster):
    behave(on_cluster, wait="student")
    run = on_cluster.start()
    # Both wait: they run at once.
    for name in waiting(on_cluster):
        (on_cluster.work_dir(name) / "go").touch()
    out = said(run, 0)
    for name in ("mle", "top"):
        assert re.search(rf"\[ [12]/2\] study/{name}/student\n", out)
        assert f"study/{name}/student: Ray job tokenuq-" in out and f"study/{name}/student: working on student" in out
        assert on_cluster.toy.store.is_complete(f"study/{name}/student")
    assert re.search(r"\ntotal +\d+\.\d s\nelapsed +\d+\.\d s\n", out) and "waits for a slot" not in out


@rare
def test_all_jobs_of_a_cluster_write_a_checkpoint_on_ctrl_c(on_cluster):
    behave(on_cluster, hang="student", slow="student")
    run = on_cluster.start()
    pids = waiting(on_cluster)
    interrupt(run)
    out = said(run, 130)
    assert out.rstrip().endswith("stopped; run the same command again to resume from the last checkpoint")
    assert not any(is_running(pid) for some in pids.values() for pid in some)
    assert all((on_cluster.work_dir(name) / "checkpoint").read_text() == "step 7" for name in pids)
    with on_cluster.toy.instance() as instance:
        assert instance.get_runs(limit=1)[0].status == dg.DagsterRunStatus.CANCELED

    behave(on_cluster)
    said(on_cluster.start(), 0)
    assert all(on_cluster.toy.store.is_complete(f"study/{name}/student") for name in pids)


@rare
def test_children_of_this_machine_write_a_checkpoint_on_ctrl_c_and_a_second_one_kills_them(study):
    behave(study, hang="student", slow="student")
    run = study.start()
    pids = waiting(study)
    interrupt(run)
    said(run, 130)
    assert all((study.work_dir(name) / "checkpoint").exists() for name in pids)

    for name in pids:
        (study.work_dir(name) / "pids").unlink()
    behave(study, stubborn="student")
    run = study.start()
    pids = waiting(study)
    interrupt(run)
    wait_until(lambda: any(message.startswith("stopping; the stage has") for message in messages(study)))
    assert any(is_running(pid) for some in pids.values() for pid in some)
    interrupt(run)
    said(run, 130)
    assert not any(is_running(pid) for some in pids.values() for pid in some)


def messages(study):
    with study.toy.instance() as instance:
        return [entry.user_message for entry in instance.all_logs(instance.get_runs(limit=1)[0].run_id)]


@rare
def test_steps_end_with_a_run_that_is_killed_and_its_jobs_are_followed(study, on_cluster):
    behave(study, hang="student")
    run = study.start()
    pids = waiting(study)
    run.kill()
    run.wait()
    # Nobody could cancel them any more.
    wait_until(lambda: all((study.work_dir(name) / "checkpoint").exists() for name in pids))
    for name in pids:
        (study.work_dir(name) / "pids").unlink()

    behave(on_cluster, wait="student")
    run = on_cluster.start()
    pids = waiting(on_cluster)
    run.kill()
    run.wait()
    run = on_cluster.start()
    for name in pids:
        (on_cluster.work_dir(name) / "go").touch()
    out = said(run, 0)
    assert out.count(": follows the Ray job ") == 2


@rare
def test_a_failure_is_told_once_and_others_go_on(study):
    behave(study, bad_input="datasets")
    study.toy.store.forget("datasets/toy")
    study.toy.store.forget("models/tiny")
    out = said(study.start(), 1)
    assert "datasets/toy stopped (the reason is printed at the end)" in out and "Traceback" not in out
    assert out.count("holds no answer") == 1 and study.toy.store.is_complete("models/tiny")


@rare
def test_the_process_of_a_step_that_is_killed_is_a_failure_in_words(study):
    behave(study, wait="student")
    run = study.start()
    waiting(study)
    steps = [int(entry.dagster_event.engine_event_data.metadata["pid"].text) for entry in worker_events(study)]
    for pid in steps:
        os.kill(pid, signal.SIGKILL)
    out = said(run, 1)
    assert "Traceback" not in out and "DagsterSubprocessError" not in out
    assert out.count("failed: the process of the step was killed") == 2


def worker_events(study):
    kind = dg.DagsterEventType.STEP_WORKER_STARTED
    with study.toy.instance() as instance:
        return instance.all_logs(instance.get_runs(limit=1)[0].run_id, of_type=kind)
