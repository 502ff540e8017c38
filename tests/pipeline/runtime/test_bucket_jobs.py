"""Stages as jobs of a cluster whose nodes share nothing but a bucket with the run."""

import os
import signal
import subprocess
import sys
import threading
import time

import dagster as dg
import pytest

from tests.support.fake_cluster import FakeCluster
from tests.support.processes import wait_until
from tests.support.stage_jobs import attempts, behave, failure, job_launcher, materialise_in, pids_in, set_up_jobs
from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime import bucket_jobs
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.slow
short_lease = pytest.mark.usefixtures("lease_of_3_s")
rare = pytest.mark.heavy
TOY = ["datasets", "toy"]


class Nodes(FakeCluster):
    """A cluster each of whose nodes has a cache of its own; a new job runs on `node`."""

    node = "first"
    hidden = ()
    """Variables that nodes do not have."""

    def submit(self, job: str, **options) -> None:
        variables = {name: "" for name in self.hidden}
        options["runtime_env"]["env_vars"] |= {"TOKENUQ_CACHE": str(self.cache), **variables}
        super().submit(job, **options)

    @property
    def cache(self):
        return self.folder.parent / f"cache of {self.node}"

    def files(self) -> set[str]:
        """What the node keeps of the store; hidden folders are the mirror's own."""
        roots = list(self.cache.glob("*-node"))
        found = {path.relative_to(root).as_posix() for root in roots for path in root.rglob("*") if path.is_file()}
        return {path for path in found if not path.startswith(".mirror/") and not path.endswith("/.lock")}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    set_up_jobs(monkeypatch, tmp_path, lease_s=30)
    monkeypatch.setattr(bucket_jobs, "LOOK_S", 0.1)
    cluster = Nodes(tmp_path / "cluster")
    yield cluster
    cluster.kill()


@pytest.fixture
def lease_of_3_s(cluster, monkeypatch):
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "3")


def launcher(cluster, **settings):
    return job_launcher(RayBackend(cluster, RaySettings(**settings)))


def materialise(store, cluster, *keys, **settings):
    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        return materialise_in(instance, build_defs(toy_config(), store.home, launcher(cluster, **settings)), keys)


def objects(store, part="") -> set[str]:
    return {info.key for info in store.mirror.bucket.objects() if part in info.key}


def working(cluster) -> list[int]:
    """The pids of the stage that waits or hangs, once it does."""
    pids = wait_until(lambda: next(cluster.cache.rglob("pids"), None))
    return pids_in(pids)


def test_a_job_sends_what_it_makes_and_leaves_nothing(store_address, cluster, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame-open")
    store = open_store(store_address)
    result, messages = materialise(store, cluster, TOY)
    assert result.success and "working on datasets" in messages
    assert store.is_complete("datasets/toy") and not store.problems("datasets/toy")
    ((_, options),) = cluster.submitted.items()
    # Ray shows and logs what it is given.
    assert not any(secret in str(options) for secret in ("sesame", "secret", "DAGSTER_PIPES"))
    assert not objects(store, "/jobs/") and not list(store.home.rglob("jobs"))
    files = {file.path for file in store.read_manifest("datasets/toy").files}
    # Moved to where the next stage on this node looks for them.
    assert cluster.files() == files


@rare
def test_a_study_has_the_versions_of_one_machine(store_address, cluster, tmp_path, made_study):
    store, config = open_store(store_address), toy_config()
    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        defs = build_defs(config, store.home, launcher(cluster))
        assert run_study(defs, config, STUDY, [], instance, store) == 0
        said = {entry.message for run in instance.get_runs() for entry in instance.all_logs(run.run_id)}
    versions = {asset: store.data_version(asset) for asset in store.assets()}
    local = made_study.store
    assert versions == {asset: local.data_version(asset) for asset in local.assets()}
    # Stages that read files of this machine run here; of the others, this machine has what Dagster shows.
    assert {message for message in said if message.endswith("runs here")} == {
        "convert_model reads files of this machine, and runs here",
        "load_dataset reads files of this machine, and runs here",
    }
    here = {path.relative_to(store.home).parts[0] for path in store.home.rglob("*") if path.is_file()}
    assert "token_losses" in here and "teacher_hidden" not in here
    assert any(path.startswith("teacher_hidden/") for path in cluster.files())
    assert not objects(store, "/jobs/")


@rare
def test_another_machine_follows_the_job_of_a_run_that_was_killed(machine, cluster, tmp_path, store_address):
    behave(tmp_path, {"wait": "datasets"})
    one = machine("one")
    run = subprocess.Popen([sys.executable, "-c", RUN, store_address, str(cluster.folder)])
    (stage,) = working(cluster)
    run.kill()
    run.wait()
    two = machine("two")
    assert two.home != one.home
    threading.Timer(1.0, (next(cluster.cache.rglob("pids")).parent / "go").touch).start()
    result, messages = materialise(two, cluster, TOY)
    assert result.success and two.is_complete("datasets/toy") and not two.problems("datasets/toy")
    assert not cluster.submitted and any("which an earlier run started" in message for message in messages)
    assert messages.count("working on datasets") == 1 and not is_running(stage)
    assert not objects(two, "/jobs/")


RUN = """
import sys
from pathlib import Path
import dagster as dg
from tests.support.fake_cluster import FakeCluster
from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime import bucket_jobs
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
bucket_jobs.LOOK_S = 0.1
store, cluster = open_store(sys.argv[1]), FakeCluster(Path(sys.argv[2]))
submit = cluster.submit
def on_first(job, **options):
    options["runtime_env"]["env_vars"]["TOKENUQ_CACHE"] = f"{cluster.folder.parent}/cache of first"
    submit(job, **options)
cluster.submit = on_first
launcher = StageLauncher(package="fake_entrypoints", backend=RayBackend(cluster))
with dg.DagsterInstance.ephemeral() as instance:
    job = build_defs(toy_config(), store.home, launcher).resolve_job_def(STUDY)
    job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["datasets", "toy"])])
"""


@rare
@short_lease
def test_a_stage_resumes_on_another_node(store_address, cluster, tmp_path):
    behave(tmp_path, {"resume": "datasets"})
    store = open_store(store_address)

    def lose_node():
        working(cluster)
        wait_until(lambda: objects(store, "/COMPLETE"))
        cluster.kill()
        cluster.node = "second"

    thread = threading.Thread(target=lose_node)
    thread.start()
    result, messages = materialise(store, cluster, TOY)
    thread.join()
    assert result.success and attempts(result) == 1 and len(cluster.submitted) == 2
    assert messages.count("resuming from step 7") == 1
    # Nothing of the checkpoint was on the machine of the run.
    assert not list(store.home.rglob("state.pt"))


@rare
def test_a_cancelled_step_leaves_a_checkpoint_in_the_bucket(store_address, cluster, tmp_path):
    behave(tmp_path, {"resume": "datasets"})
    store = open_store(store_address)
    run = subprocess.Popen([sys.executable, "-c", RUN, store_address, str(cluster.folder)], stderr=subprocess.DEVNULL)
    pids = working(cluster)
    run.send_signal(signal.SIGINT)
    run.wait(60)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert objects(store, "checkpoint-7/COMPLETE") and not objects(store, "/jobs/")


@rare
@short_lease
def test_a_stage_works_on_while_the_service_is_away(store_address, cluster, tmp_path, s3_proxy):
    behave(tmp_path, {"wait": "datasets"})
    store = open_store(store_address)

    def be_away():
        working(cluster)
        s3_proxy.is_away = True
        # Longer than a lease.
        time.sleep(4.0)
        s3_proxy.is_away = False
        (next(cluster.cache.rglob("pids")).parent / "go").touch()

    thread = threading.Thread(target=be_away)
    thread.start()
    result, messages = materialise(store, cluster, TOY)
    thread.join()
    assert result.success and attempts(result) == 0 and messages.count("working on datasets") == 1


@rare
@short_lease
def test_a_job_that_was_taken_for_dead_is_killed(store_address, cluster, tmp_path):
    behave(tmp_path, {"resume": "datasets"})
    store = open_store(store_address)
    seen = []

    def take_over():
        pids = working(cluster)
        wait_until(lambda: objects(store, "/COMPLETE"))
        store.mirror.bucket.delete(sorted(objects(store, "/jobs/")))
        wait_until(lambda: not any(is_running(pid) for pid in pids))
        seen.append(True)

    thread = threading.Thread(target=take_over)
    thread.start()
    result, messages = materialise(store, cluster, TOY)
    thread.join()
    assert seen and result.success and "resuming from step 7" in messages
    assert not objects(store, "/jobs/")


@rare
def test_failures_are_one_sentence(store_address, cluster, tmp_path, monkeypatch):
    store = open_store(store_address)
    behave(tmp_path, {"bad_input": "datasets"})
    result, _ = materialise(store, cluster, TOY)
    assert failure(result) == "datasets.yaml: row 3: holds no answer; add one" and attempts(result) == 0
    behave(tmp_path, {})
    cluster.hidden = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    result, _ = materialise(store, cluster, TOY)
    said = failure(result)
    assert f"this node cannot work for the store: {store_address}: no credentials; set AWS_ACCESS_KEY_ID" in said
    assert attempts(result) == 0 and not objects(store, "/jobs/")
    cluster.hidden = ()
    assert materialise(store, cluster, ["models", "tiny"], ["datasets", "extra"], TOY)[0].success
    (file,) = (file for file in store.read_manifest("datasets/toy").files if file.path.startswith("examples/"))
    store.mirror.bucket.write(f"{file.path}/{file.sha256}", bytes(file.bytes))
    cluster.node = "second"
    result, _ = materialise(store, cluster, [STUDY, "tokenized_dataset"])
    said = failure(result)
    assert f"{file.path}/{file.sha256}: its SHA-256 begins with" in said and attempts(result) == 0
    assert said.endswith("`tokenuq verify --forget`, then `tokenuq run`, makes it again")


@rare
def test_nodes_that_share_the_cache_use_it(store_address, cluster, monkeypatch):
    monkeypatch.setattr(Nodes, "cache", property(lambda self: os.environ["TOKENUQ_CACHE"]))
    store = open_store(store_address)
    result, _ = materialise(store, cluster, TOY, shares_cache=True)
    ((_, options),) = cluster.submitted.items()
    assert result.success and "cluster_job" in options["entrypoint"] and "s3://" not in options["entrypoint"]
