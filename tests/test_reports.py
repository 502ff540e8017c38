"""Analysis, ablation table, page and plots, on small frames whose answers are known."""

import json
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tokenuq_ml.analysis import analyse
from tokenuq_ml.entrypoints.analyse import joined_tokens
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports import html, plots
from tokenuq_ml.reports.ablation_table import table_rows, verdict
from tokenuq_ml.reports.heatmap import heatmap, most_uncertain
from tokenuq_ml.reports.text import ablation_table_text
from tokenuq_ml.specs import EvaluationSpec

SPEC = EvaluationSpec(bootstrap=300)


def tokens(examples=40, length=25, seed=0):
    draw = np.random.default_rng(seed)
    rows = examples * length
    entropy = draw.gamma(2, 1, rows)
    bald = 0.01 * entropy * draw.lognormal(0, 0.5, rows)
    return pl.DataFrame(
        {
            "example_id": [f"toy/{i // length:03d}" for i in range(rows)],
            "position": [i % length for i in range(rows)],
            "split": ["test" if i % (2 * length) < length else "train" for i in range(rows)],
            "category": [("word", "number")[i % 2] for i in range(rows)],
            "token": ["<b>x</b>"] * rows,
            "rank": [0] * rows,
            "loss": entropy + draw.exponential(1, rows),
            "entropy": entropy,
            "bald": bald,
            "expected_entropy": entropy - bald,
        }
    )


class TestAnalysis:
    def pick(self, table, method, x="loss", y="bald", split="all", category="all"):
        return table.filter(
            (pl.col("method") == method)
            & (pl.col("x") == x)
            & (pl.col("y") == y)
            & (pl.col("split") == split)
            & (pl.col("category") == category)
        ).row(0, named=True)

    def test_equals_scipy(self):
        frame = tokens()
        table = analyse(frame, SPEC)
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
        frame = tokens()
        ranks = {name: stats.rankdata(frame[name]) for name in ("loss", "bald", "entropy")}
        residual = {
            name: ranks[name] - np.polyval(np.polyfit(ranks["entropy"], ranks[name], 1), ranks["entropy"])
            for name in ("loss", "bald")
        }
        expected = stats.pearsonr(residual["loss"], residual["bald"]).statistic
        assert self.pick(analyse(frame, SPEC), "partial_spearman")["value"] == pytest.approx(expected, abs=1e-9)

    def test_intervals_are_a_bootstrap_over_examples(self):
        """Against resampling whole examples and computing Pearson anew each time."""
        frame = tokens(examples=20)
        row = self.pick(analyse(frame, EvaluationSpec(bootstrap=2000)), "pearson")
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
        table = analyse(tokens().with_columns(bald=pl.lit(0.0)), SPEC)
        assert self.pick(table, "spearman")["value"] is None
        assert self.pick(table, "partial_spearman")["value"] is None

    def test_tables_that_do_not_join_are_refused(self):
        frame = tokens()
        losses, uncertainty = frame.drop("bald"), frame.select("example_id", "position", "bald")
        assert len(joined_tokens(losses, uncertainty)) == len(frame)
        with pytest.raises(InputError, match="materialise both again"):
            joined_tokens(losses, uncertainty.head(10))


def evaluation(value, low, high, metric="loss", split="test", better=False):
    return {
        "family": "f",
        "seed": 0,
        "dataset": "d",
        "split": split,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": 9,
        "higher_is_better": better,
    }


def frames(**models):
    return {
        name: pl.DataFrame([evaluation(*values), evaluation(0.5, 0.1, 0.9, "loss", "ood")])
        for name, values in models.items()
    }


class TestAblationTable:
    def test_best_only_where_no_interval_overlaps(self):
        rows = table_rows(frames(base=(3, 2.9, 3.1), teacher=(2, 1.9, 2.1), mle=(1, 0.9, 1.1)))
        test = {row["model"]: row for row in rows if row["split"] == "test"}
        assert [name for name, row in test.items() if row["best"]] == ["mle"] and test["base"]["separated"]
        ood = [row for row in rows if row["split"] == "ood"]
        assert not any(row["best"] or row["separated"] for row in ood)

    def test_higher_can_be_better(self):
        both = {
            name: pl.DataFrame([evaluation(*v, "token_accuracy", "test", True)])
            for name, v in {"a": (0.9, 0.8, 1.0), "b": (0.2, 0.1, 0.3)}.items()
        }
        assert [row["model"] for row in table_rows(both) if row["best"]] == ["a"]

    def test_the_verdict_says_so_when_nothing_can_be_told_apart(self):
        same = verdict(table_rows(frames(base=(3, 2.9, 3.1), mle=(1, 0.5, 1.5), paper=(1, 0.4, 1.4))))
        assert "cannot separate the arms" in same
        apart = verdict(table_rows(frames(base=(3, 2.9, 3.1), mle=(2, 1.9, 2.1), paper=(1, 0.9, 1.1))))
        assert "mle and paper" in apart

    def test_text_holds_every_number(self):
        text = ablation_table_text(table_rows(frames(base=(3, 2.9, 3.1), mle=(1, 0.9, 1.1))))
        assert "*1.000 [0.900, 1.100]" in text and "n=9" in text and text.count("n=9 indistinct") == 1


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_data_shows_as_text():
    frame = tokens(examples=4)
    ids = most_uncertain(frame, 2)
    page = Page(html.page("<script>alert(1)</script>", "s", [("h", heatmap(frame, ids))]))
    assert not any(tag == "b" for tag, _ in page.tags) and "<b>x</b>" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert all(frame.filter(pl.col("example_id") == i)["split"][0] == "test" for i in ids)
    for tag, attributes in page.tags:
        assert not attributes.get("src", "data:").startswith("http") and tag != "link"


class TestPlots:
    def png(self, path):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 120_000
        return data

    def log(self, steps):
        return pl.DataFrame(
            {
                "step": list(range(1, steps + 1)),
                "loss": [1.0] * steps,
                "mle_loss": [1.5] * steps,
                "distill_loss": [None] * steps,
                "grad_norm": [1.0] * steps,
            },
            schema_overrides={"distill_loss": pl.Float32},
        )

    @pytest.mark.parametrize("steps", [1, 6, 80])
    def test_training_and_selection(self, tmp_path, steps):
        plots.training_curve(self.log(steps), tmp_path / "a.png")
        plots.training_curves({"x": self.log(steps), "y": self.log(steps)}, tmp_path / "b.png")
        curriculum = pl.DataFrame(
            {
                "step": list(range(steps)) * 2,
                "category": ["word"] * steps + ["number"] * steps,
                "n_selected": [0] * steps + [3] * steps,
            }
        )
        plots.selected_categories(curriculum, tmp_path / "c.png")
        plots.selected_categories(curriculum.with_columns(n_selected=0), tmp_path / "d.png")
        for name in "abcd":
            self.png(tmp_path / f"{name}.png")

    def test_loss_vs_bald_with_and_without_spread(self, tmp_path):
        plots.loss_vs_bald(tokens(), tmp_path / "a.png")
        plots.loss_vs_bald(tokens().with_columns(bald=pl.lit(0.0)), tmp_path / "b.png")
        assert self.png(tmp_path / "a.png") != self.png(tmp_path / "b.png")

    def test_planes(self, tmp_path):
        everything = pl.concat(
            [
                frame.with_columns(ablation=pl.lit(name))
                for name, frame in frames(base=(3, 2.9, 3.1), teacher=(2, 1.9, 2.1), mle=(1, 0.9, 1.1)).items()
            ]
        )
        plots.id_vs_ood(everything, tmp_path / "a.png")
        plots.id_vs_ood(everything.filter(pl.col("split") == "test"), tmp_path / "b.png")
        uncertainty = pl.DataFrame(
            {"fraction": [0.0, 1.0], "step": [0, 4], "category": ["all"] * 2, "loss": [2.0, 1.0], "bald": [0.0, 0.1]}
        )
        plots.uncertainty_over_training(uncertainty, tmp_path / "c.png")
        for name in "abc":
            self.png(tmp_path / f"{name}.png")


def test_rows_are_json():
    rows = table_rows(frames(base=(3, 2.9, 3.1), mle=(1, 0.9, 1.1)))
    assert json.loads(json.dumps(rows)) == rows
