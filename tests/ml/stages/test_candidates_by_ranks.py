"""A candidate for the teacher, trained and measured by two processes: the validation losses of one process."""

import polars as pl
import pytest

from tests.support.parallel_stages import Rerun, study_requests
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.heavy
STAGE, LOSSES = "candidate_teacher", "validation_losses"


@pytest.fixture(scope="module")
def request_of_a_candidate(tmp_path_factory):
    request = study_requests(tmp_path_factory.mktemp("study"))["train_teacher"]
    asset = request.assets["baseline_teacher"]
    fields = {**asset.fields, "tables": "float32"}
    asset = asset.model_copy(update={"fields": fields, "outputs": {**asset.outputs, LOSSES: ""}})
    return request.model_copy(update={"assets": {STAGE: asset}, "ablation": "teacher_lr0p01"})


def losses_of(request, folder, processes: int, sharding: str) -> pl.DataFrame:
    folder.mkdir()
    stage = Rerun(request, folder, processes, sharding=sharding)
    stage.start()
    (result,) = stage.finish().values()
    assert result.metrics.get("processes", 1) == processes
    table = read_table(folder / STAGE / LOSSES)
    assert result.metrics["validation_loss"] == pytest.approx(table["loss"].sum() / table["tokens"].sum())
    return table


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_measure_what_one_does(request_of_a_candidate, tmp_path, sharding):
    one = losses_of(request_of_a_candidate, tmp_path / "one", 1, "none")
    two = losses_of(request_of_a_candidate, tmp_path / "two", 2, sharding)
    assert len(one) == 4 and one.drop("loss").equals(two.drop("loss"))
    # The adapters differ by the rounding of six steps.
    assert two["loss"].to_list() == pytest.approx(one["loss"].to_list(), rel=1e-4)
