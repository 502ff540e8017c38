"""Correlations equal those of scipy, also for small numbers, constants and few tokens; intervals, a plain bootstrap."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tests.support import tiny_tables
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.scoring import correlations
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.tables.schemas import TABLES, TOKEN_KEY

SPEC = EvaluationSpec(bootstrap=100)


@pytest.fixture
def tokens():
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    return losses.join(uncertainty, on=TOKEN_KEY, validate="1:1")


def row_of(table, method, x="loss", y="bald", split="all", category="all"):
    return table.filter(method=method, x=x, y=y, split=split, category=category).row(0, named=True)


def value_of(table, method, x="loss", y="bald", column="value"):
    return row_of(table, method, x, y)[column]


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


def test_the_partial_correlation_follows_its_formula(tokens):
    xy, xz, yz = (
        stats.spearmanr(tokens[a], tokens[b]).statistic
        for a, b in (("loss", "bald"), ("loss", "entropy"), ("bald", "entropy"))
    )
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert value_of(correlation_table(tokens, SPEC), "partial_spearman") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_unit_changes_no_correlation(tokens, scale):
    """BALD of a small adapter is about 1e-9 nats: small, but not constant."""
    scaled = correlation_table(tokens.with_columns(pl.col("bald") * scale), SPEC)
    for method in ("pearson", "spearman", "partial_spearman"):
        for column in ("value", "ci_low", "ci_high"):
            plain = value_of(correlation_table(tokens, SPEC), method, column=column)
            # The scaled column is rounded to float32 again.
            assert value_of(scaled, method, column=column) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_has_no_correlation(tokens, constant):
    table = correlation_table(tokens.with_columns(bald=pl.lit(constant)), SPEC)
    touched = table.filter((pl.col("x") == "bald") | (pl.col("y") == "bald"))
    assert touched["value"].is_null().all() and touched["ci_low"].is_null().all()
    assert value_of(table, "pearson", "loss", "entropy") is not None


def test_a_partial_correlation_given_one_of_its_columns_is_undefined(tokens):
    table = correlation_table(tokens.with_columns(loss=pl.col("entropy") * 2), SPEC)
    assert value_of(table, "spearman", "loss", "entropy") == pytest.approx(1)
    assert value_of(table, "partial_spearman") is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_tokens_have_no_correlation(tokens, count):
    table = correlation_table(tokens.head(count), SPEC)
    overall = table.filter(split="all", category="all")
    assert len(overall) == 11 and overall["value"].is_null().all() and (overall["n"] == count).all()


def test_the_chunk_size_does_not_change_the_intervals(tokens, monkeypatch):
    complete = correlation_table(tokens, SPEC)
    monkeypatch.setattr(correlations, "CHUNK_COUNTS", 50)
    chunked = correlation_table(tokens, SPEC)
    for column in ("ci_low", "ci_high"):
        assert (complete[column] - chunked[column]).abs().max() < 1e-12


def test_values_equal_those_of_scipy():
    frame = tiny_tables.joined_tokens()
    table = correlation_table(frame, EvaluationSpec(bootstrap=300))
    part = frame.filter((pl.col("split") == "test") & (pl.col("category") == "word"))
    for where, rows in (({}, frame), ({"split": "test", "category": "word"}, part)):
        assert row_of(table, "pearson", **where)["value"] == pytest.approx(
            stats.pearsonr(rows["loss"], rows["bald"]).statistic, abs=1e-9
        )
        assert row_of(table, "spearman", **where)["value"] == pytest.approx(
            stats.spearmanr(rows["loss"], rows["bald"]).statistic, abs=1e-9
        )
    assert row_of(table, "pearson", split="test", category="word")["n"] == len(part)


def test_the_partial_correlation_is_that_of_residual_ranks():
    frame = tiny_tables.joined_tokens()
    ranks = {name: stats.rankdata(frame[name]) for name in ("loss", "bald", "entropy")}
    residual = {
        name: ranks[name] - np.polyval(np.polyfit(ranks["entropy"], ranks[name], 1), ranks["entropy"])
        for name in ("loss", "bald")
    }
    expected = stats.pearsonr(residual["loss"], residual["bald"]).statistic
    table = correlation_table(frame, EvaluationSpec(bootstrap=300))
    assert row_of(table, "partial_spearman")["value"] == pytest.approx(expected, abs=1e-9)


def test_intervals_are_a_bootstrap_over_examples():
    """The reference resamples examples and computes Pearson in each resample."""
    frame = tiny_tables.joined_tokens(examples=20)
    row = row_of(correlation_table(frame, EvaluationSpec(bootstrap=2000)), "pearson")
    loss, bald = (frame[name].to_numpy().reshape(20, -1) for name in ("loss", "bald"))
    draw = np.random.default_rng(1)
    values = []
    for _ in range(2000):
        chosen = draw.integers(0, 20, 20)
        values.append(np.corrcoef(loss[chosen].ravel(), bald[chosen].ravel())[0, 1])
    low, high = np.quantile(values, [0.025, 0.975])
    assert row["ci_low"] == pytest.approx(low, abs=0.02) and row["ci_high"] == pytest.approx(high, abs=0.02)
    assert row["ci_low"] < row["value"] < row["ci_high"]
