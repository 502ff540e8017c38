"""Stages as jobs of a cluster whose nodes share nothing but a bucket with the run."""

import json

import dagster as dg
import pytest

from tests.support.fake_cluster import FakeCluster
from tests.support.toy_pipeline import STUDY, fake_environment, toy_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend

pytestmark = pytest.mark.slow
rare = pytest.mark.heavy
TOY = ["datasets", "toy"]


class Node(FakeCluster):
    """A cluster of one node, with a cache of its own."""

    def submit(self, job: str, **options) -> None:
        options["runtime_env"]["env_vars"]["TOKENUQ_CACHE"] = str(self.folder.parent / "node")
        super().submit(job, **options)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name, value in fake_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "3")
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRY_DELAY_S", 0)
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_stage.LATE_S", 0.5)
    monkeypatch.setattr("tokenuq_pipeline.runtime.launchers.ray_stage.LOOK_S", 0.1)
    monkeypatch.setattr("tokenuq_pipeline.runtime.bucket_jobs.LOOK_S", 0.1)
    behave(tmp_path, {})
    monkeypatch.setenv("FAKE_STAGE", f"@{tmp_path / 'behaviour.json'}")
    cluster = Node(tmp_path / "cluster")
    yield cluster
    cluster.kill()


def behave(folder, behaviour):
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


def materialise(store, cluster, *keys):
    forget_definitions_storage()
    launcher = StageLauncher(package="fake_entrypoints", termination_timeout=20.0, backend=RayBackend(cluster))
    with dg.DagsterInstance.ephemeral() as instance:
        result = (
            build_defs(toy_config(), store.home, launcher)
            .resolve_job_def(STUDY)
            .execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey(key) for key in keys], raise_on_error=False
            )
        )
        return result, [entry.message for entry in instance.all_logs(result.run_id)]


def test_a_job(store_address, cluster, tmp_path):
    store = open_store(store_address)
    result, messages = materialise(store, cluster, TOY)
    print("\n".join(map(str, messages)))
    print(*(p.read_text() for p in cluster.folder.glob("*.stderr")))
    assert result.success
