"""Correlations where they are hard: tiny numbers, constants, too few tokens, memory; and the stage around them."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tests.support import tiny_tables
from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring import correlations
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.stages import correlate as stage
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TABLES

SPEC = EvaluationSpec(bootstrap=100)


@pytest.fixture
def tokens():
    return stage.joined_tokens(*tiny_tables.losses_and_uncertainty())


def value_of(table, method, x="loss", y="bald", column="value", split="all", category="all"):
    names = {"method": method, "x": x, "y": y, "split": split, "category": category}
    return table.filter(**names)[column].item()


def test_every_split_and_category_has_every_pair(tokens):
    table = correlation_table(tokens, SPEC)
    assert len(table) == (1 + 4) * (1 + 7) * 11
    assert table.select(TABLES["uncertainty_analysis"].keys).is_unique().all()
    intervals = table.filter(pl.col("category") != "all").select("ci_low", "ci_high")
    assert intervals.null_count().row(0) == (len(intervals), len(intervals))
    overall = table.filter(pl.col("category") == "all")
    assert (
        overall.select((pl.col("ci_low") <= pl.col("value")) & (pl.col("value") <= pl.col("ci_high"))).to_series().all()
    )


def test_ties_share_their_mean_rank(tokens):
    tied = tokens.with_columns(pl.col("loss", "bald").round(3))
    expected = stats.spearmanr(tied["loss"], tied["bald"]).statistic
    assert tied["bald"].n_unique() < len(tied) / 4
    assert value_of(correlation_table(tied, SPEC), "spearman") == pytest.approx(expected, abs=1e-9)


def test_partial_by_its_formula(tokens):
    xy, xz, yz = (
        stats.spearmanr(tokens[a], tokens[b]).statistic
        for a, b in (("loss", "bald"), ("loss", "entropy"), ("bald", "entropy"))
    )
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert value_of(correlation_table(tokens, SPEC), "partial_spearman") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_unit_alters_no_correlation(tokens, scale):
    """BALD of a small adapter is of the order of 1e-9 nats: small is not constant."""
    scaled = correlation_table(tokens.with_columns(pl.col("bald") * scale), SPEC)
    for method in ("pearson", "spearman", "partial_spearman"):
        for column in ("value", "ci_low", "ci_high"):
            plain = value_of(correlation_table(tokens, SPEC), method, column=column)
            # float32 columns round anew.
            assert value_of(scaled, method, column=column) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_has_no_correlation(tokens, constant):
    table = correlation_table(tokens.with_columns(bald=pl.lit(constant)), SPEC)
    touched = table.filter((pl.col("x") == "bald") | (pl.col("y") == "bald"))
    assert touched["value"].is_null().all() and touched["ci_low"].is_null().all()
    assert value_of(table, "pearson", "loss", "entropy") is not None


def test_partial_is_undefined_given_the_column_itself(tokens):
    table = correlation_table(tokens.with_columns(loss=pl.col("entropy") * 2), SPEC)
    assert value_of(table, "spearman", "loss", "entropy") == pytest.approx(1)
    assert value_of(table, "partial_spearman") is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_tokens(tokens, count):
    table = correlation_table(tokens.head(count), SPEC)
    overall = table.filter(split="all", category="all")
    assert len(overall) == 11 and overall["value"].is_null().all() and (overall["n"] == count).all()


def test_chunks_of_the_bootstrap_alter_nothing(tokens, monkeypatch):
    whole = correlation_table(tokens, SPEC)
    monkeypatch.setattr(correlations, "_CHUNK_COUNTS", 50)
    chunked = correlation_table(tokens, SPEC)
    for column in ("ci_low", "ci_high"):
        assert (whole[column] - chunked[column]).abs().max() < 1e-12


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


def test_the_stage_writes_table_plot_and_figures(tmp_path):
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    told = RecordingReporter()
    stage.run(request(tmp_path, losses, uncertainty), told)
    (result,) = told.results
    table = read_table(tmp_path / "out" / "uncertainty_analysis")
    assert table.columns == TABLES["uncertainty_analysis"].schema.names
    assert result.metrics["spearman_loss_bald"] == value_of(table, "spearman")
    assert result.metrics["tokens"] == len(losses)
    median = uncertainty.filter(losses["category"] == "number")["bald"].cast(pl.Float32).median()
    assert result.metrics["median_bald_number"] == pytest.approx(median, rel=1e-5)
    (plot,) = result.plots.values()
    assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")


def test_the_stage_refuses_a_token_twice(tmp_path):
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    doubled = pl.concat([uncertainty.head(1), uncertainty.head(len(uncertainty) - 1)])
    with pytest.raises(InputError, match="twice"):
        stage.run(request(tmp_path, losses, doubled), RecordingReporter())
    assert not (tmp_path / "out" / "uncertainty_analysis" / "part-0.parquet").exists()


class TestReference:
    """Against scipy, residuals of ranks, and a bootstrap that computes everything anew."""

    def pick(self, table, method, x="loss", y="bald", split="all", category="all"):
        return table.filter(
            (pl.col("method") == method)
            & (pl.col("x") == x)
            & (pl.col("y") == y)
            & (pl.col("split") == split)
            & (pl.col("category") == category)
        ).row(0, named=True)

    def test_equals_scipy(self):
        frame = tiny_tables.joined_tokens()
        table = correlation_table(frame, EvaluationSpec(bootstrap=300))
        part = frame.filter((pl.col("split") == "test") & (pl.col("category") == "word"))
        for where, rows in (({}, frame), ({"split": "test", "category": "word"}, part)):
            assert self.pick(table, "pearson", **where)["value"] == pytest.approx(
                stats.pearsonr(rows["loss"], rows["bald"]).statistic, abs=1e-9
            )
            assert self.pick(table, "spearman", **where)["value"] == pytest.approx(
                stats.spearmanr(rows["loss"], rows["bald"]).statistic, abs=1e-9
            )
        assert self.pick(table, "pearson", split="test", category="word")["n"] == len(part)

    def test_partial_is_the_correlation_of_residual_ranks(self):
        frame = tiny_tables.joined_tokens()
        ranks = {name: stats.rankdata(frame[name]) for name in ("loss", "bald", "entropy")}
        residual = {
            name: ranks[name] - np.polyval(np.polyfit(ranks["entropy"], ranks[name], 1), ranks["entropy"])
            for name in ("loss", "bald")
        }
        expected = stats.pearsonr(residual["loss"], residual["bald"]).statistic
        table = correlation_table(frame, EvaluationSpec(bootstrap=300))
        assert self.pick(table, "partial_spearman")["value"] == pytest.approx(expected, abs=1e-9)

    def test_intervals_are_a_bootstrap_over_examples(self):
        """Against resampling whole examples and computing Pearson anew each time."""
        frame = tiny_tables.joined_tokens(examples=20)
        row = self.pick(correlation_table(frame, EvaluationSpec(bootstrap=2000)), "pearson")
        loss, bald = (frame[name].to_numpy().reshape(20, -1) for name in ("loss", "bald"))
        draw = np.random.default_rng(1)
        values = []
        for _ in range(2000):
            chosen = draw.integers(0, 20, 20)
            values.append(np.corrcoef(loss[chosen].ravel(), bald[chosen].ravel())[0, 1])
        low, high = np.quantile(values, [0.025, 0.975])
        assert row["ci_low"] == pytest.approx(low, abs=0.02) and row["ci_high"] == pytest.approx(high, abs=0.02)
        assert row["ci_low"] < row["value"] < row["ci_high"]

    def test_undefined_is_null(self):
        table = correlation_table(
            tiny_tables.joined_tokens().with_columns(bald=pl.lit(0.0)), EvaluationSpec(bootstrap=300)
        )
        assert self.pick(table, "spearman")["value"] is None
        assert self.pick(table, "partial_spearman")["value"] is None

    def test_tables_that_do_not_join_are_refused(self):
        frame = tiny_tables.joined_tokens()
        losses, uncertainty = frame.drop("bald"), frame.select("example_id", "position", "bald")
        assert len(stage.joined_tokens(losses, uncertainty)) == len(frame)
        with pytest.raises(InputError, match="materialise both again"):
            stage.joined_tokens(losses, uncertainty.head(10))
