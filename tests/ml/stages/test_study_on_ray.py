"""Measuring stages whose batches two processes of a Ray cluster compute: the data versions of one process."""

import sys

import pytest

from tests.support.parallel_stages import ABLATION, Rerun, study_requests
from tests.support.ray_clusters import two_nodes
from tests.support.tiny_study import STUDY

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def cluster():
    with two_nodes({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}) as nodes:
        yield {"RAY_ADDRESS": f"127.0.0.1:{nodes.gcs_port}", "RAY_AUTH_MODE": "disabled"}


def test_scores_and_evaluations_have_the_data_versions_of_one_process(cluster, tmp_path):
    (tmp_path / "study").mkdir()
    requests = study_requests(tmp_path / "study")
    student = requests["train_student"]
    made = f"study={STUDY}/ablation={ABLATION}"
    places = {"selections": f"selections/{made}", "adapter": f"student/{made}/adapter"}
    places["snapshots"] = f"student/{made}/snapshots"
    inputs = {name: str(tmp_path / "study/store" / place) for name, place in places.items()}
    assets = {name: asset for name, asset in student.assets.items() if name != "student"}
    requests["train_student"] = student.model_copy(update={"assets": assets, "inputs": {**student.inputs, **inputs}})
    for entrypoint, count in (("score_teacher", 4), ("train_student", 2)):
        found = []
        command = [sys.executable, "-m", "tokenuq_ml.stages.measure_on_ray", "2", f"tokenuq_ml.stages.{entrypoint}"]
        for name, chosen in (("here", None), ("cluster", command)):
            folder = tmp_path / f"{entrypoint}-{name}"
            folder.mkdir()
            stage = Rerun(requests[entrypoint], folder, environment=cluster)
            stage.start(chosen)
            found.append(stage.finish())
        here, there = found
        assert {name: result.data_version for name, result in here.items()} == {
            name: result.data_version for name, result in there.items()
        }
        assert len(there) == count and {result.metrics["processes"] for result in there.values()} == {2}
        assert all(check.passed for result in there.values() for check in result.checks.values())
