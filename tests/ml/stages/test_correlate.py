"""The stage that correlates loss, entropy and BALD."""

import polars as pl
import pytest

from tests.support import tiny_tables
from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import correlate
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TABLES

SPEC = EvaluationSpec(bootstrap=100)


def request(tmp_path, losses, uncertainty):
    inputs = tiny_tables.publish(tmp_path / "store", {"token_losses": losses, "token_uncertainty": uncertainty})
    outputs = {name: str(tmp_path / "out" / name) for name in ("uncertainty_analysis", "plots")}
    asset = AssetRequest(fields={"evaluation": SPEC.fields()}, code_version="1-x", outputs=outputs)
    return StageRequest(
        entrypoint="correlate",
        study="toy",
        assets={"uncertainty_analysis": asset},
        inputs=inputs,
        work_dir=str(tmp_path / "work"),
    )


def test_the_table_the_plot_and_the_metrics_are_written(tmp_path):
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    reporter = RecordingReporter()
    correlate.run(request(tmp_path, losses, uncertainty), reporter)
    (result,) = reporter.results
    table = read_table(tmp_path / "out" / "uncertainty_analysis")
    assert table.columns == TABLES["uncertainty_analysis"].schema.names
    overall = table.filter(method="spearman", x="loss", y="bald", split="all", category="all")
    assert result.metrics["spearman_loss_bald"] == overall["value"].item()
    assert result.metrics["tokens"] == len(losses)
    median = uncertainty.filter(losses["category"] == "number")["bald"].cast(pl.Float32).median()
    assert result.metrics["median_bald_number"] == pytest.approx(median, rel=1e-5)
    (plot,) = result.plots.values()
    assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")


def test_a_duplicate_token_is_rejected_before_a_table_is_written(tmp_path):
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    doubled = pl.concat([uncertainty.head(1), uncertainty.head(len(uncertainty) - 1)])
    with pytest.raises(InputError, match="duplicate tokens"):
        correlate.run(request(tmp_path, losses, doubled), RecordingReporter())
    assert not (tmp_path / "out" / "uncertainty_analysis" / "part-0.parquet").exists()


def test_tables_with_different_tokens_are_rejected():
    frame = tiny_tables.joined_tokens()
    losses, uncertainty = frame.drop("bald"), frame.select("example_id", "position", "bald")
    assert len(correlate.joined_tokens(losses, uncertainty)) == len(frame)
    with pytest.raises(InputError, match="materialise both again"):
        correlate.joined_tokens(losses, uncertainty.head(10))
