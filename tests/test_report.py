"""The report stage on a toy study's tables: the page, the table's files, the text for the terminal."""

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import polars as pl
import pytest
import tiny_tables
from reporter import Silent

from tokenuq_ml.analysis import analyse
from tokenuq_ml.entrypoints import report
from tokenuq_ml.entrypoints.analyse import joined_tokens
from tokenuq_ml.reports import plots
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.heatmap import MOST_TOKENS, heatmap, most_uncertain
from tokenuq_ml.reports.text import WIDTH, ablation_table_text
from tokenuq_ml.specs import AblationSpec, EvaluationSpec, StudySpec
from tokenuq_ml.stages import AssetRequest, StageRequest

ABLATIONS = {
    "mle": AblationSpec(name="mle", select="all"),
    "paper": AblationSpec(name="paper", select={"by": "loss", "quantile": 0.25}, rest="distill"),
}
STUDY = StudySpec(name="toy", model="tiny", dataset="toy", ood=("far",), ablations=("mle", "paper"))


class Page(HTMLParser):
    """Tags, visible text and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def build(folder, **changed):
    """Runs the stage; returns its result and the folder of the report."""
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    frames = {
        "token_losses": losses,
        "token_uncertainty": uncertainty,
        "uncertainty_analysis": analyse(joined_tokens(losses, uncertainty), EvaluationSpec(bootstrap=50)),
        "examples/toy": tiny_tables.examples_table(),
        "training_log/teacher": tiny_tables.training_log(),
        "evaluations/base": tiny_tables.evaluations(3.0, 0.1, seed=None),
        "evaluations/teacher": tiny_tables.evaluations(2.0, 0.1),
        "evaluations/mle": tiny_tables.evaluations(1.5, 0.3),
        "evaluations/paper": tiny_tables.evaluations(1.4, 0.3),
    }
    for name in ABLATIONS:
        frames[f"training_log/{name}"] = tiny_tables.training_log()
        frames[f"curriculum/{name}"] = tiny_tables.curriculum()
        frames[f"curriculum_uncertainty/{name}"] = tiny_tables.curriculum_uncertainty()
    out = folder / "report"
    out.mkdir(parents=True)
    fields = {"study": STUDY.fields(), "ablations": {name: spec.fields() for name, spec in ABLATIONS.items()}}
    request = StageRequest(
        entrypoint="report",
        study="toy",
        assets={"ablation_report": AssetRequest(fields=fields, code_version="1-x", outputs={"report": str(out)})},
        inputs=tiny_tables.publish(folder / "store", frames | changed),
        work_dir=str(folder / "work"),
    )
    told = Silent()
    report.run(request, told)
    (result,) = told.results
    return result, out


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("toy"))


def test_the_page_needs_nothing_outside_itself(built):
    _, out = built
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    # Two of the planes, loss against BALD, and two for each of the two ablations.
    assert len(images) == 7
    for source in images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not any(attributes.keys() & {"href", "srcset"} for _, attributes in page.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(", re.sub(r'src="data:[^"]*"', "", text))
    assert "prefers-color-scheme: dark" in text


def test_text_from_data_stays_text(built):
    page = Page((built[1] / "report.html").read_text(encoding="utf-8"))
    assert not any(tag == "i" for tag, _ in page.tags)
    assert "<i>&amp;" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_the_page_says_what_was_decided_here(built):
    text = Page((built[1] / "report.html").read_text(encoding="utf-8")).text
    for name in ("learning rate", "epochs", "batch size", "LoRA dropout", "MC samples K", "forward_kl, T=1, weight 1"):
        assert name in text
    assert "cannot separate the arms" in text
    assert "1 of the 2 question templates in test also occur in train (1 of 2 test examples)" in text
    assert "1 of 2 test questions occur word for word in train" in text
    assert "BALD is 0 by construction" in text


def test_the_same_table_as_json_and_csv(built):
    result, out = built
    rows = json.loads((out / "ablation_table.json").read_text())
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["base", "teacher", "mle", "paper"]
    assert len(rows) == 4 * 2 and result.metrics["models"] == 4
    with open(out / "ablation_table.csv", newline="") as file:
        written = list(csv.DictReader(file))
    for row, text in zip(rows, written, strict=True):
        assert {"value", "ci_low", "ci_high", "n", "higher_is_better"} <= text.keys()
        assert float(text["value"]) == row["value"] and text["model"] == row["model"]
    for plot in result.plots.values():
        assert (out.parent / plot).is_file()


@pytest.fixture
def quick_plots(monkeypatch):
    """One pixel in place of each picture, where a test is not about them."""
    pixel = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    )
    monkeypatch.setattr(plots, "_save", lambda figure, path: path.write_bytes(pixel))


def test_the_version_follows_what_is_shown(built, quick_plots, tmp_path):
    result, _ = built
    again, _ = build(tmp_path / "again")
    other, _ = build(tmp_path / "other", **{"evaluations/paper": tiny_tables.evaluations(1.41, 0.3)})
    assert again.data_version == result.data_version != other.data_version


def test_a_dataset_without_templates(quick_plots, tmp_path):
    examples = tiny_tables.examples_table().with_columns(source=pl.lit("{}"))
    _, out = build(tmp_path, **{"examples/toy": examples})
    assert "does not say which question templates" in Page((out / "report.html").read_text(encoding="utf-8")).text


def test_heatmap_shows_the_least_sure_of_validation_and_test():
    tokens = joined_tokens(*tiny_tables.losses_and_uncertainty())
    means = tokens.filter(pl.col("split").is_in(["validation", "test"])).group_by("example_id").agg(pl.mean("bald"))
    expected = means.sort("bald", descending=True)["example_id"].head(3).to_list()
    assert most_uncertain(tokens, 3) == expected
    assert heatmap(tokens, expected).count("<span") == 3 * tiny_tables.LENGTH


def test_heatmap_cuts_a_long_answer_and_says_so():
    tokens = joined_tokens(*tiny_tables.losses_and_uncertainty(examples=20))
    long = tokens.with_columns(example_id=pl.lit("toy/long"), position=pl.int_range(pl.len()))
    text = heatmap(long, ["toy/long"])
    assert text.count("<span") == MOST_TOKENS and f"{len(long) - MOST_TOKENS} more tokens" in text


class TestText:
    def rows(self, models, ood=("far",)):
        return table_rows({name: tiny_tables.evaluations(loss, 0.1, ood=ood) for name, loss in models.items()})

    def test_models_by_metrics(self):
        lines = ablation_table_text(self.rows({"base": 3.0, "mle": 1.0})).splitlines()
        assert lines[0].split() == ["toy", "(test)", "far", "(ood)"] and lines[1].split() == ["loss", "loss"]
        assert [line.split()[0] for line in lines[4:6]] == ["base", "mle"]
        assert lines[4].split(maxsplit=1)[1].split() == ["3.000", "[2.900,", "3.100]"] * 2
        assert lines[5].count("*1.000 [0.900, 1.100]") == 2 and "*" not in lines[4]
        assert lines[3].split() == ["n=9", "n=9"] and lines[2].count("lower is better") == 2

    def test_metrics_that_tell_nothing_apart_say_so(self):
        text = ablation_table_text(self.rows({"base": 1.01, "mle": 1.0}))
        assert text.count("n=9 indistinct") == 2 and "*1.0" not in text

    def test_many_metrics_wrap_to_the_terminal(self):
        text = ablation_table_text(self.rows({"base": 3.0, "mle": 1.0}, ood=tuple(f"dataset_{i}" for i in range(20))))
        assert max(map(len, text.splitlines())) <= WIDTH
        assert sum(line.startswith("mle ") for line in text.splitlines()) > 1
        assert text.count("[0.900, 1.100]") == 21

    def test_a_missing_metric_and_counts_that_differ(self):
        rows = self.rows({"base": 3.0, "mle": 1.0})
        rows = [row for row in rows if (row["model"], row["split"]) != ("mle", "test")]
        rows[-1]["n"] = 7
        base, mle = ablation_table_text(rows).splitlines()[4:6]
        assert mle.split()[:2] == ["mle", "-"] and mle.endswith("n=7")
        assert base.count("[2.900, 3.100]") == 2 and base.endswith("n=9")

    def test_nothing(self):
        assert ablation_table_text([]) == ""


def test_reports_and_analysis_import_no_torch():
    modules = [f"tokenuq_ml.reports.{name}" for name in ("plots", "html", "heatmap", "ablation_table", "text")]
    modules += ["tokenuq_ml.analysis", "tokenuq_ml.entrypoints.analyse"]
    code = f"""
import sys
import tokenuq_ml.reports.text
assert not {{'torch', 'matplotlib', 'polars'}} & set(sys.modules)
import {", ".join(modules)}
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
