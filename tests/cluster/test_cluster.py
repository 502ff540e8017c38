"""A study on a Ray cluster of two local nodes has the data versions of one machine, whatever fails meanwhile."""

import subprocess

import pytest

from tests.cluster.__main__ import demo, run_trial
from tests.cluster.failures import TRIALS
from tests.cluster.study import ClusterStudy
from tests.support.ray_clusters import two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.heavy]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    yield folder
    subprocess.run(["umount", str(folder / "disk")], capture_output=True)


@pytest.fixture(scope="module")
def local(folder):
    """The study, made on one machine."""
    local = ClusterStudy(folder / "local")
    local.run(None)
    return local


@pytest.fixture(scope="module")
def running():
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def cluster(running):
    """The cluster, with all its nodes."""
    running.start()
    return running


def test_a_cluster_gives_the_data_versions_of_one_machine(folder, cluster, local):
    seen, well = demo(folder, cluster, local.versions())
    assert well, seen


@pytest.mark.parametrize("trial", TRIALS, ids=[trial.act.__name__ for trial in TRIALS])
def test_a_failure_changes_no_data_version(trial, folder, cluster, local):
    *_, seen, well = run_trial(trial, folder, cluster, local)
    assert well, seen
