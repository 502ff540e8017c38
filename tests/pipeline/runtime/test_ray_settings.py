"""What a stage gets on a Ray cluster: its environment, code and reservation; and which jobs a run may follow."""

import os
import sys
import time

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES_VARIABLE
from tokenuq_pipeline.runtime.launchers import ray_cluster
from tokenuq_pipeline.runtime.launchers.choice import chosen_backend
from tokenuq_pipeline.runtime.launchers.job_environment import job_environment, reserved, threads
from tokenuq_pipeline.runtime.launchers.job_folders import JobFolder, create_job, jobs_in
from tokenuq_pipeline.runtime.launchers.local import LocalBackend
from tokenuq_pipeline.runtime.launchers.ray_cluster import (
    ClusterAway,
    NodeResources,
    RayCluster,
    TokenRefused,
    within,
)
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings
from tokenuq_pipeline.ui.login import TOKEN_VARIABLE

RAY = {"TOKENUQ_LAUNCHER": "ray", "RAY_ADDRESS": "http://head:8265"}


def request(fields=None, stage="student", **changes):
    asset = AssetRequest(fields=fields or {}, code_version="1-a", outputs={"adapter": "/staging/adapter"})
    spec = {"entrypoint": "train_student", "assets": {stage: asset}, "inputs": {}, "work_dir": "/work", **changes}
    return StageRequest(**spec)


def description(**changes):
    values = {"arguments": ["-m", "x", "{request}"], "code": "c", "expiry_s": 60, "unattended_s": 900, "grace_s": 30}
    return job_files.JobDescription(**values | changes)


def test_a_stage_gets_what_is_listed_and_nothing_else():
    given = {
        "HF_TOKEN": "a",
        "TOKENUQ_HOME": "b",
        "JUDGE_KEY": "c",
        "AWS_REGION": "d",
        "OTHER_KEY": "e",
        "PATH": "f",
        POSTGRES_VARIABLE: "g",
        TOKEN_VARIABLE: "h",
        "TOKENUQ_RAY_ENV": "AWS_REGION, MISSING",
    }
    judged = request({"evaluation": {"alpaca_eval": {"judge": {"api_key_env": "JUDGE_KEY"}}, "lists": [{"x": [1]}]}})
    passed = job_environment(judged, given)
    assert {name for name in given if name in passed} == {
        "HF_TOKEN",
        "TOKENUQ_HOME",
        "JUDGE_KEY",
        "AWS_REGION",
        "TOKENUQ_RAY_ENV",
    }
    assert "JUDGE_KEY" not in job_environment(request(), given)


def test_the_file_of_the_environment_is_for_its_owner_and_read_once(tmp_path):
    job_files.write_environment(tmp_path, {"KEY": "sesame"})
    assert (tmp_path / job_files.ENVIRONMENT).stat().st_mode & 0o777 == 0o600
    assert job_files.take_environment(tmp_path) == {"KEY": "sesame"}
    assert not os.listdir(tmp_path)


def test_a_stage_reserves_what_the_study_says_else_a_processor_and_its_gpus():
    assert reserved(request(), 0) == {"CPU": 1}
    assert reserved(request(), 8) == {"CPU": 1, "GPU": 1}
    assert reserved(request(processes=4), 8) == {"CPU": 1, "GPU": 4}
    assert reserved(request(resources=StageResources(num_gpus=0)), 8) == {"CPU": 1}
    asked = StageResources(num_cpus=8, num_gpus=2, memory="2GB", custom={"disk": 1})
    needs = reserved(request(resources=asked, processes=2), 0)
    assert needs == {"CPU": 8, "GPU": 2, "memory": 2 * 10**9, "disk": 1}
    # Each of the two processes has half.
    assert threads(request(resources=asked, processes=2), needs, {}) == of_threads("4")


def of_threads(number):
    return {"TOKENUQ_THREADS": number, "OMP_NUM_THREADS": number}


def test_a_stage_has_the_threads_that_it_would_have_on_this_machine_if_the_environment_says_so():
    needs = {"CPU": 8.0}
    assert threads(request(), needs, {"OMP_NUM_THREADS": "3"}) == of_threads("3")
    assert threads(request(processes=2), needs, {"OMP_NUM_THREADS": "3", "TOKENUQ_THREADS": "2"}) == of_threads("2")
    assert threads(request(), needs, {"OMP_NUM_THREADS": "6,2"}) == of_threads("6")
    assert threads(request(), needs, {"OMP_NUM_THREADS": ""}) == of_threads("8")


def test_one_node_has_to_hold_a_stage():
    cluster = NodeResources(({"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}))
    assert cluster.total("CPU") == 10 and cluster.total("TPU") == 0
    assert cluster.fit({"CPU": 2, "GPU": 1}) and cluster.fit({"CPU": 8})
    assert not cluster.fit({"CPU": 4, "GPU": 1}) and not cluster.fit({"disk": 1})


def test_the_code_is_installed_in_an_image_or_uploaded():
    assert RaySettings.of({}).python == sys.executable and RaySettings.of({}).working_dir is None
    image = RaySettings.of({"TOKENUQ_RAY_IMAGE": "registry/tokenuq"})
    assert image.python == "python" and image.runtime_env(30)["image_uri"] == "registry/tokenuq"
    uploaded = RaySettings.of({"TOKENUQ_RAY_WORKING_DIR": str(ROOT), "TOKENUQ_RAY_PYTHON": "/a b/python"})
    assert uploaded.runtime_env(30)["working_dir"] == str(ROOT) and uploaded.python == "'/a b/python'"
    # Ray sends SIGTERM by default, and kills after three seconds.
    variables = uploaded.runtime_env(30)["env_vars"]
    assert variables == {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "35"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TOKENUQ_LAUNCHER": "slurm"}, "TOKENUQ_LAUNCHER: unknown launcher 'slurm'; allowed: local, ray"),
        ({"RAY_ADDRESS": ""}, "needs RAY_ADDRESS, the address of the cluster's dashboard"),
        ({"TOKENUQ_RAY_WORKING_DIR": "/nowhere"}, "/nowhere is no checkout of tokenuq"),
        ({"TOKENUQ_RAY_IMAGE": "x", "TOKENUQ_RAY_WORKING_DIR": str(ROOT)}, "Ray uploads no code into an image"),
        ({"TOKENUQ_RAY_UNATTENDED_SECONDS": "soon"}, "must be a positive number of seconds, is 'soon'"),
    ],
)
def test_a_wrong_variable_is_one_sentence(environment, words):
    with pytest.raises(InputError, match=words):
        chosen_backend(RAY | environment)


def test_the_launcher_is_chosen_by_the_environment(monkeypatch):
    assert isinstance(chosen_backend({}), LocalBackend)
    backend = chosen_backend(RAY)
    assert isinstance(backend, RayBackend) and backend.cluster.address == "http://head:8265"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'tokenuq\[ray\]'"):
        chosen_backend(RAY)


def test_a_question_to_a_cluster_has_a_time_limit(monkeypatch):
    assert within(5, lambda: 7) == 7
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        within(0.05, lambda: time.sleep(1))
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.05)
    cluster = RayCluster("http://head:8265")
    monkeypatch.setattr(cluster, "_client", type("Client", (), {"stop_job": lambda self, job: time.sleep(1)})())
    with pytest.raises(ClusterAway, match="RAY_ADDRESS=http://head:8265: no answer within"):
        cluster.stop("job")


def test_a_cluster_that_wants_a_token_is_told_at_once(monkeypatch):
    from ray.exceptions import AuthenticationError

    def refuse(client):
        raise AuthenticationError("Authentication required: Unauthorized")

    cluster, waited = RayCluster("http://head:8265"), []
    monkeypatch.setattr(cluster, "resources", lambda: cluster._ask(refuse, 5))
    monkeypatch.setattr(cluster, "_client", object())
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: object())
    with pytest.raises(TokenRefused, match=r"http://head:8265: the cluster wants its token: set RAY_AUTH_MODE=token"):
        cluster.wait(5, waited.append)
    assert not waited


def test_a_job_fits_a_request_for_the_same_or_a_part_of_it(tmp_path):
    made = request(work_dir=str(tmp_path))
    made.assets["evaluation"] = AssetRequest(fields={"a": 1}, code_version="2-b", outputs={"evaluations": "/staging/e"})
    job = create_job(tmp_path, "job", made, description())
    assert jobs_in(tmp_path) == [job] and job.description().arguments == ["-m", "x", f"{job.path}/request.json"]
    outputs = job.request().assets["evaluation"].outputs["evaluations"]
    assert outputs.startswith(str(job.path)) and os.path.isdir(outputs)
    assert job.fits(made) and job.fits(request(work_dir=str(tmp_path)))
    assert not job.fits(request({"b": 1})) and not job.fits(request(stage="curriculum"))
    assert not job.fits(request(entrypoint="train_teacher")) and not job.fits(request(inputs={"other": "/store/x"}))
    assert not JobFolder(tmp_path / "jobs" / "missing").fits(made)
    job.remove()
    assert not os.listdir(tmp_path)


def test_a_job_works_from_its_first_heartbeat_until_it_is_silent_or_has_ended(tmp_path):
    job = create_job(tmp_path, "job", request(), description(expiry_s=5))
    assert job.silence() is None and not job.works()
    (job.path / job_files.BEAT).touch()
    assert job.works()
    os.utime(job.path / job_files.BEAT, (time.time() - 10,) * 2)
    assert 5 < job.silence() < 60 and not job.works()
    (job.path / job_files.BEAT).touch()
    job_files.write_json(job.path / job_files.ENDED, job_files.JobEnd(code=0))
    assert not job.works() and job.end().code == 0
