"""The stage that measures further estimators of BALD: its rows, nulls, costs, and the ranking against the truth."""

import polars as pl
import pytest

from tests.support.known_truth import ROWS, STEPS, UNCERTAINTY, request_of, teacher, write_study
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, tiny_model
from tokenuq_ml.config import EvaluationSpec, UncertaintySpec, estimators
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.scoring.adapter_ensemble import ensemble_uncertainty
from tokenuq_ml.scoring.last_layer_laplace import head_posterior, laplace_uncertainty
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.stages import correlate, estimate_uncertainty, measure_truth
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES

pytestmark = pytest.mark.slow

KEYS, TABLE, COSTS = ["example_id", "position"], "uncertainty_estimates", "estimator_costs"
MEMBERS = {"teacher": STEPS, "teacher_s1001": 2, "teacher_s1002": 4}
SPEC = UncertaintySpec(**UNCERTAINTY.fields(), estimators=["adapter_ensemble", "mc_dropout_50"], members=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the tables, the inputs, and what was reported."""
    out, reporter = tmp_path_factory.mktemp("estimates"), RecordingReporter()
    inputs = write_study(out / "study")
    for row, step in MEMBERS.items():
        if row != "teacher":
            teacher(step).save_pretrained(out / row)
            inputs[f"adapter/{row}"] = str(out / row)
    fields = {"model": "m", "uncertainty": SPEC.estimator_fields()}
    estimate_uncertainty.run(request_of(TABLE, fields, inputs, out, TABLE, COSTS), reporter)
    return out, inputs, reporter.results


def test_each_column_is_what_its_estimator_says(made):
    table = read_table(made[0] / TABLE)
    assert table.columns == TABLES[TABLE].schema.names and table.equals(table.sort(KEYS))
    model = teacher(STEPS)
    dropped = token_uncertainty(model, ROWS, UNCERTAINTY.model_copy(update={"dropout": 0.5}), FLOAT32)
    base = tiny_model()
    for name in MEMBERS:
        base = attach_adapter(base, made[1]["adapter" if name == "teacher" else f"adapter/{name}"], name)
    members = ensemble_uncertainty(base, list(MEMBERS), ROWS, FLOAT32)
    for column, rows in (("bald_mc_dropout_50", dropped), ("bald_adapter_ensemble", members)):
        both = table.join(rows.select(*KEYS, "bald"), on=KEYS, validate="1:1")
        assert len(both) == len(table) == sum(len(row.positions) for row in ROWS)
        assert (both[column] - both["bald"]).abs().max() < 1e-5 < both["bald"].max(), column
    absent = set(table.columns) - {*KEYS, "bald_mc_dropout_50", "bald_adapter_ensemble"}
    assert len(absent) == 5 and all(table[name].null_count() == len(table) for name in absent)


def test_the_costs_are_those_of_each_estimator(made):
    costs = {row["estimator"]: row for row in read_table(made[0] / COSTS).iter_rows(named=True)}
    ensemble, dropout = costs["adapter_ensemble"], costs["mc_dropout_50"]
    assert (ensemble["samples"], ensemble["trainings"], ensemble["forward_passes"]) == (3, 2, 3.0)
    assert (dropout["samples"], dropout["trainings"], dropout["head_products"]) == (UNCERTAINTY.samples, 0, 3.0)
    one = sum(tensor.numel() * 4 for name, tensor in teacher().named_parameters() if "lora_" in name)
    assert ensemble["bytes"] == 2 * one and dropout["bytes"] == 0
    assert min(ensemble["seconds"], dropout["seconds"]) > 0 and ensemble["prior_precision"] is None


def test_the_data_version_is_that_of_the_rows_and_not_of_the_times(made, tmp_path):
    (result,) = made[2]
    table = read_table(made[0] / TABLE)
    assert result.data_version == write_table(table, TABLE, tmp_path, spec_hash="s", code_version="1-s")
    assert result.metrics["mean_bald_adapter_ensemble"] == pytest.approx(table["bald_adapter_ensemble"].mean())


def test_estimators_and_the_teachers_change_are_ranked_against_the_truth(made, tmp_path):
    inputs, reporter = dict(made[1]), RecordingReporter()
    fields = {"model": "m", "uncertainty": UNCERTAINTY.fields(), "fractions": [1.0]}
    tables = ("true_divergence", "true_divergence_over_training")
    measure_truth.run(request_of("true_divergence", fields, inputs, tmp_path, *tables), reporter)
    change = read_table(made[0] / TABLE).select(*KEYS, change=pl.col("bald_adapter_ensemble") * 2)
    write_table(change, "teacher_change", tmp_path / "change", spec_hash="s", code_version="c")
    inputs |= {name: str(tmp_path / name) for name in tables}
    inputs |= {TABLE: str(made[0] / TABLE), "teacher_change": str(tmp_path / "change")}
    fields = {"evaluation": EvaluationSpec(bootstrap=50).fields(), "ranked": [TABLE, "teacher_change"]}
    outputs = ("uncertainty_analysis", "truth_ranking", "plots")
    correlate.run(request_of("uncertainty_analysis", fields, inputs, tmp_path, *outputs), reporter)
    ranking = read_table(tmp_path / "truth_ranking").filter(split="all", slot="all", fraction=1.0)
    truth = read_table(tmp_path / "true_divergence").join(read_table(made[0] / TABLE), on=KEYS)
    for score in ("bald_adapter_ensemble", "bald_mc_dropout_50", "teacher_change"):
        found = ranking.filter(score=score, statistic="spearman_true_kl")["value"].item()
        column = "bald_adapter_ensemble" if score == "teacher_change" else score
        assert found == pytest.approx(truth.select(pl.corr(column, "true_kl", method="spearman")).item(), abs=1e-6)
    assert "bald_laplace" not in ranking["score"].unique()


def estimated(made, out, **uncertainty) -> RecordingReporter:
    """Run the stage with other estimators."""
    reporter, spec = RecordingReporter(), UncertaintySpec(**UNCERTAINTY.fields(), **uncertainty)
    fields = {"model": "m", "uncertainty": spec.estimator_fields()}
    estimate_uncertainty.run(request_of(TABLE, fields, made[1], out, TABLE, COSTS), reporter)
    return reporter


def test_laplace_is_fitted_to_the_train_split_and_measures_every_token(made, tmp_path):
    pytest.importorskip("laplace")
    estimated(made, tmp_path, estimators=["laplace", "laplace_diag"])
    table, costs = read_table(tmp_path / TABLE), read_table(tmp_path / COSTS)
    assert len(table) == sum(len(row.positions) for row in ROWS)
    assert table["bald_laplace"].min() > 0 and table["bald_laplace_diag"].min() > 0
    train = sum(len(row.input_ids) for row in ROWS if row.split == "train")
    share = train / sum(len(row.input_ids) for row in ROWS)
    assert costs["estimator"].to_list() == ["laplace", "laplace_diag"]
    assert costs["forward_passes"].to_list() == pytest.approx([1 + share] * 2)
    assert costs["head_products"].to_list() == [3.0, 3.0] and costs["prior_precision"].min() > 0
    model, train_rows = teacher(STEPS), [row for row in ROWS if row.split == "train"]
    posterior = head_posterior("laplace_diag", model, train_rows, UNCERTAINTY, FLOAT32)
    both = table.join(laplace_uncertainty(model, posterior, ROWS, FLOAT32).select(*KEYS, "bald"), on=KEYS)
    assert both["bald_laplace_diag"].to_list() == pytest.approx(both["bald"].to_list(), rel=1e-3, abs=1e-6)


def test_a_refused_estimator_is_refused_before_anything_is_measured(made, tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "LAPLACE_LIMIT", 1000)
    monkeypatch.setattr(estimate_uncertainty, "token_uncertainty", None)
    with pytest.raises(InputError, match="more than the limit"):
        estimated(made, tmp_path, estimators=["mc_dropout_5", "laplace_diag"])
