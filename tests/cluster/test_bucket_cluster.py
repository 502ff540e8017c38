"""A study whose store is in a bucket, on two nodes that share nothing but the bucket with each other and the run."""

import os

import pytest

from tests.cluster.bucket import BucketStudy
from tests.cluster.failures import MADE_BEFORE, PATIENCE_S
from tests.cluster.study import LOSSES, STUDY, TEACHER, ClusterStudy
from tests.support.processes import wait_until
from tests.support.ray_clusters import two_nodes
from tests.support.s3_server import environment, s3_server
from tokenuq_ml.object_store.address import Address
from tokenuq_ml.object_store.bucket import Bucket

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide a node's files from another's processes"),
]
MEASURED = (LOSSES, f"{STUDY}/teacher_hidden", f"{STUDY}/token_uncertainty")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The study, made on one machine."""
    local = ClusterStudy(tmp_path_factory.mktemp("local"))
    local.run(None, *MEASURED)
    return local


@pytest.fixture(scope="module")
def service():
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def cluster(service):
    with two_nodes(environment(service), apart=True) as cluster:
        yield cluster


def same_versions(study, local):
    expected, found = local.versions(), study.versions()
    return {name: version for name, version in found.items() if expected[name] != version} == {}


def test_nodes_fetch_what_they_measure_and_send_tables_and_states(tmp_path, service, cluster, local):
    study = BucketStudy(tmp_path / "measured", service, local.inputs, "measured")
    study.take(local, MADE_BEFORE[LOSSES])
    study.run(cluster.address, *MEASURED, TOKENUQ_PROCESSES="2")
    assert set(MEASURED) <= set(study.versions()) and same_versions(study, local)
    # The job was on one node and the actor on the other; each has fetched the model, and neither has a job left.
    assert "1 processes of the cluster measure batches" in study.said()
    for node in ("first", "second"):
        assert list(cluster.cache_of(node).glob("*/models/*/model.safetensors"))
        assert not list(cluster.cache_of(node).glob("*/.checkpoints/**/jobs/*"))
    assert not list(study.home.glob("models/*/model.safetensors"))


def test_a_training_resumes_on_the_other_node(tmp_path, service, cluster, local, monkeypatch):
    study = BucketStudy(tmp_path / "trained", service, local.inputs, "trained")
    study.take(local, MADE_BEFORE[TEACHER])
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(Address.parse(study.address))
    run = study.start(cluster.address, TEACHER)

    def sent() -> bool:
        assert run.poll() is None, study.said()[-6000:]
        return any(info.key.endswith("/COMPLETE") for info in bucket.objects(".checkpoints"))

    wait_until(sent, PATIENCE_S)
    cluster.kill(wait_until(lambda: cluster.node_with("tokenuq_ml.stages.bucket_job"), PATIENCE_S))
    assert run.wait(2 * PATIENCE_S) == 0, study.said()[-6000:]
    assert "resuming from step" in study.said() and same_versions(study, local)
    assert not list(study.home.rglob("checkpoint-*"))
