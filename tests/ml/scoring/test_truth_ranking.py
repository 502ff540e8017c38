"""Rankings against the truth, compared with plain counting over pairs of tokens and with numpy."""

import numpy as np
import polars as pl
import pytest

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.scoring.truth_ranking import RANKING_SCHEMA, STATISTICS, ranking_rows

SPEC = EvaluationSpec(bootstrap=200)


def tokens(count=200, seed=0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    kl = draw.exponential(size=count)
    return pl.DataFrame(
        {
            "example_id": [f"toy/{number // 10:03d}" for number in range(count)],
            "position": pl.Series(range(count), dtype=pl.Int32),
            "split": ["train" if number // 10 % 2 else "test" for number in range(count)],
            "slot": ["fact" if number % 3 else "choice" for number in range(count)],
            "true_kl": kl,
            "true_entropy": draw.exponential(size=count),
            "loss": kl + draw.normal(size=count),
            "rounded": np.round(kl + draw.normal(size=count)),
            "constant": np.ones(count),
        }
    ).sample(fraction=1.0, shuffle=True, seed=seed)


def value(rows, score, statistic, split="all", slot="all") -> dict:
    return rows.row(
        by_predicate=(pl.col("score") == score)
        & (pl.col("statistic") == statistic)
        & (pl.col("split") == split)
        & (pl.col("slot") == slot),
        named=True,
    )


def plain(frame: pl.DataFrame, score: str) -> dict[str, float]:
    """The statistics by their definitions."""
    ordered = frame.sort("example_id", "position")
    x, kl = ordered[score].to_numpy(), ordered["true_kl"].to_numpy()
    size = -(-len(x) // 4)
    top = np.argsort(-kl, kind="stable")[:size]
    rest = np.setdiff1d(np.arange(len(x)), top)
    pairs = (x[top][:, None] > x[rest]) + 0.5 * (x[top][:, None] == x[rest])
    # Of equal scores, the mean over all orders: by many random ones.
    draw, shares = np.random.default_rng(1), []
    for _ in range(4000):
        order = np.lexsort((draw.random(len(x)), -x))
        shares.append(kl[order[:size]].sum() / kl.sum())
    rank = lambda column: ordered[column].rank("average").to_numpy()  # noqa: E731
    return {
        "spearman_true_kl": np.corrcoef(rank(score), rank("true_kl"))[0, 1],
        "spearman_true_entropy": np.corrcoef(rank(score), rank("true_entropy"))[0, 1],
        "auroc_top_quarter": pairs.mean(),
        "top_quarter_share": np.mean(shares),
    }


@pytest.mark.parametrize(("split", "slot"), [("all", "all"), ("test", "all"), ("train", "fact")])
@pytest.mark.parametrize("score", ["loss", "rounded"])
def test_statistics_equal_their_definitions(score, split, slot):
    frame = tokens()
    rows = ranking_rows(frame, ["loss", "rounded"], SPEC)
    part = frame.filter(pl.lit(split == "all") | (pl.col("split") == split))
    part = part.filter(pl.lit(slot == "all") | (pl.col("slot") == slot))
    for statistic, expected in plain(part, score).items():
        found = value(rows, score, statistic, split, slot)
        assert found["n"] == len(part)
        assert found["value"] == pytest.approx(expected, abs=5e-3 if statistic == "top_quarter_share" else 1e-9)
        assert (found["ci_low"] is None) == (slot != "all")


def test_the_divergence_itself_is_the_best_possible():
    rows = ranking_rows(tokens(), ["loss", "rounded"], SPEC)
    assert dict(rows.schema) == RANKING_SCHEMA and set(rows["statistic"]) == set(STATISTICS)
    best = {name: value(rows, "true_kl", name)["value"] for name in STATISTICS}
    assert best["spearman_true_kl"] == pytest.approx(1) and best["auroc_top_quarter"] == 1
    for name in ("top_quarter_share", "auroc_top_quarter", "spearman_true_kl"):
        assert all(best[name] >= value(rows, score, name)["value"] for score in ("loss", "rounded"))
    kl = tokens()["true_kl"].sort(descending=True)
    assert best["top_quarter_share"] == pytest.approx(kl[:50].sum() / kl.sum())


def test_intervals_resample_examples():
    """The interval of a share has the width that resampling whole examples gives."""
    frame = tokens(400, 3)
    rows = ranking_rows(frame, ["loss"], EvaluationSpec(bootstrap=2000))
    found = value(rows, "loss", "top_quarter_share")
    assert found["ci_low"] < found["value"] < found["ci_high"]
    ordered = frame.sort("example_id", "position")
    kl, top = ordered["true_kl"].to_numpy(), np.argsort(-ordered["loss"].to_numpy())[:100]
    held = np.isin(np.arange(400), top) * kl
    sums = np.stack([column.reshape(-1, 10).sum(1) for column in (held, kl)])
    draw = np.random.default_rng(0).integers(40, size=(2000, 40))
    shares = sums[0][draw].sum(1) / sums[1][draw].sum(1)
    assert found["ci_high"] - found["ci_low"] == pytest.approx(np.ptp(np.quantile(shares, [0.025, 0.975])), rel=0.15)
    auroc = value(rows, "loss", "auroc_top_quarter")
    assert 0.5 < auroc["ci_low"] < auroc["value"] < auroc["ci_high"] < 1


def test_what_is_not_defined_is_null():
    rows = ranking_rows(tokens(), ["constant"], SPEC)
    assert value(rows, "constant", "spearman_true_kl")["value"] is None
    assert value(rows, "constant", "auroc_top_quarter")["value"] is None
    # Any quarter of the tokens holds a quarter of the divergence on average.
    assert value(rows, "constant", "top_quarter_share")["value"] == pytest.approx(0.25)
    learnt = ranking_rows(tokens().with_columns(true_kl=pl.lit(0.0)), ["loss"], SPEC)
    assert value(learnt, "loss", "top_quarter_share")["value"] is None
    few = ranking_rows(tokens(3), ["loss"], SPEC)
    assert few["value"].null_count() == len(few) > 0


def test_scores_of_any_order_of_rows_are_equal():
    shuffled = tokens().sample(fraction=1.0, shuffle=True, seed=9)
    assert ranking_rows(shuffled, ["rounded"], SPEC).equals(ranking_rows(tokens(), ["rounded"], SPEC))
