"""The ablation table and the page around it, on rows whose answers are known."""

import json
import random
from html.parser import HTMLParser

import polars as pl
import pytest

from tokenuq_ml.reports import html
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.text import ablation_table_text


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
    def test_the_best_model_is_marked_only_if_no_interval_overlaps(self):
        rows = table_rows(frames(base=(3, 2.9, 3.1), teacher=(2, 1.9, 2.1), mle=(1, 0.9, 1.1)))
        test = {row["model"]: row for row in rows if row["split"] == "test"}
        assert [name for name, row in test.items() if row["best"]] == ["mle"] and test["base"]["separated"]
        ood = [row for row in rows if row["split"] == "ood"]
        assert not any(row["best"] or row["separated"] for row in ood)

    def test_the_highest_value_is_best_where_higher_is_better(self):
        both = {
            name: pl.DataFrame([evaluation(*v, "token_accuracy", "test", True)])
            for name, v in {"a": (0.9, 0.8, 1.0), "b": (0.2, 0.1, 0.3)}.items()
        }
        assert [row["model"] for row in table_rows(both) if row["best"]] == ["a"]

    @pytest.mark.parametrize("higher", [True, False, None])
    def test_marks_are_those_of_comparing_every_pair(self, higher):
        draw = random.Random(0)
        for _ in range(200):
            # Few distinct ends, so that intervals touch and coincide.
            ends = [sorted(draw.choices(range(8), k=2)) for _ in range(draw.randint(1, 4))]
            models = {
                f"m{i}": pl.DataFrame([evaluation(low, low, high, better=higher)]) for i, (low, high) in enumerate(ends)
            }
            for row, (low, high) in zip(table_rows(models), ends, strict=True):
                others = [ends[i] for i in range(len(ends)) if f"m{i}" != row["model"]]
                assert row["separated"] == any(a[0] > b[1] for a in ends for b in ends)
                wins = {True: lambda o, low=low: low > o[1], False: lambda o, high=high: high < o[0]}
                assert row["best"] == (higher is not None and bool(others) and all(map(wins[higher], others)))

    def test_the_text_has_every_number(self):
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


def test_text_from_data_is_escaped():
    text = "<script>alert(1)</script>"
    page = Page(html.page(text, text, [(text, html.paragraph(text) + html.table([text], [[text]]))]))
    # The page's own two scripts are no data; title, heading, subtitle, section, paragraph and two cells are.
    assert sum(tag == "script" for tag, _ in page.tags) == 2 and page.text.count(text) == 7
    for tag, attributes in page.tags:
        assert not attributes.get("src", "data:").startswith("http") and tag != "link"


def test_rows_can_be_written_as_json():
    rows = table_rows(frames(base=(3, 2.9, 3.1), mle=(1, 0.9, 1.1)))
    assert json.loads(json.dumps(rows)) == rows
