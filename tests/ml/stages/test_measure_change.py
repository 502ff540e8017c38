"""The teacher's divergence from the base model, against plain PyTorch on the published adapter."""

import polars as pl
import pytest
import torch

from tests.support.known_truth import ROWS, STEPS, request_of, teacher, write_study
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32
from tokenuq_ml.data.batching import collate
from tokenuq_ml.scoring.teacher_change import teacher_change
from tokenuq_ml.stages import measure_change
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.slow


def plain_change(row) -> list[float]:
    """KL(teacher || base model) of a row's response tokens, from full logits in float64."""
    model, ids, at = teacher(STEPS), collate([row]).input_ids_BT, [position - 1 for position in row.positions]
    with torch.no_grad():
        logq = model(input_ids=ids).logits[0, at].double().log_softmax(-1)
        with model.disable_adapter():
            logp = model(input_ids=ids).logits[0, at].double().log_softmax(-1)
    return (logq.exp() * (logq - logp)).sum(1).tolist()


def test_the_table_has_the_change_of_every_response_token(tmp_path):
    inputs, reporter = write_study(tmp_path / "study"), RecordingReporter()
    request = request_of("teacher_change", {"model": "m"}, inputs, tmp_path, "teacher_change")
    measure_change.run(request, reporter)
    table = read_table(tmp_path / "teacher_change")
    expected = [
        (row.example_id, position, change)
        for row in sorted(ROWS, key=lambda row: row.example_id)
        for position, change in zip(row.positions, plain_change(row), strict=True)
    ]
    assert table.select("example_id", "position").rows() == [row[:2] for row in expected]
    assert table["change"].to_list() == pytest.approx([row[2] for row in expected], rel=1e-4, abs=1e-6)
    (result,) = reporter.results
    assert result.metrics["tokens"] == len(expected) and result.metrics["precision"] == "float32"
    assert result.metrics["mean_change"] == pytest.approx(table["change"].mean())


def test_an_adapter_that_changes_nothing_has_the_change_zero():
    model = teacher(STEPS)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    rows = teacher_change(model, ROWS[:3], FLOAT32)
    assert rows["change"].max() < 1e-6 and rows["change"].min() >= 0
    assert isinstance(rows, pl.DataFrame) and rows.columns == ["example_id", "position", "change"]
