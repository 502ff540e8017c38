"""The report stage on a toy study's tables: the page, the table's files, the text for the terminal."""

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from unittest import mock

import polars as pl
import pytest

from tests.support import tiny_report, tiny_tables
from tests.support.pictures import leave_out_pictures
from tests.support.tiny_report import ABLATIONS, build_report
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports import sections
from tokenuq_ml.reports.text import report_text

pytestmark = pytest.mark.slow


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


def test_costs_are_shown_but_do_not_affect_the_data_version(quick_plots, tmp_path):
    result, out = build_report(tmp_path / "a")
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "What it costs" in text and "70B" in text
    assert "What is left to learn?" not in text and not (out / "truth_ranking.png").exists()
    rows = json.loads((out / "costs.json").read_text())["measured"]
    assert [row["ablation"] for row in rows] == [*ABLATIONS] and rows[0]["seconds_step"] == 11 / 4
    with mock.patch.object(tiny_tables.publish_costs, "__defaults__", (5,)):
        slower, out = build_report(tmp_path / "b")
    assert json.loads((out / "costs.json").read_text())["measured"][0]["seconds_step"] == 11 / 5
    assert slower.data_version == result.data_version


def test_a_study_without_data_out_of_distribution_has_no_empty_plane(quick_plots, tmp_path, monkeypatch):
    study = tiny_report.report_study
    monkeypatch.setattr(tiny_report, "report_study", lambda names: study(names).model_copy(update={"ood": ()}))
    models = {"base": 3.0, "teacher": 2.0, **dict.fromkeys(ABLATIONS, 1.5)}
    evaluated = {f"evaluations/{name}": tiny_tables.evaluations(loss, 0.3, ood=()) for name, loss in models.items()}
    parts = {
        f"evaluation_examples/{name}": tiny_tables.evaluation_examples(one, ood=()) for name, one in models.items()
    }
    result, out = build_report(tmp_path, **evaluated, **parts)
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "In distribution against" not in text and "Training" in text
    assert not (out / "id_vs_ood.png").exists() and "In distribution against OOD" not in result.plots


def test_a_growing_rank_is_said_to_save_nothing(quick_plots, tmp_path):
    growing = AblationSpec(name="grows", select="all", rank_growth={"start": 8})
    _, out = build_report(tmp_path, {"mle": ABLATIONS["mle"], "grows": growing})
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "The growing LoRA rank of grows saves no operations" in text


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_report(tmp_path_factory.mktemp("toy"))


def test_the_page_loads_no_outside_resource(built):
    _, out = built
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    # Two of the planes, the quantile curves, two of the overlap, loss against BALD, two for each of the four ablations.
    assert len(images) == 14
    for source in images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not any("srcset" in attributes for _, attributes in page.tags)
    # Links lead to its own sections.
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links and {link.removeprefix("#") for link in links} <= {a["id"] for _, a in page.tags if "id" in a}
    assert not re.search(r"url\(|@import|https?://|fetch\(", re.sub(r'src="data:[^"]*"', "", text))
    assert "prefers-color-scheme: dark" in text


def test_text_from_data_is_escaped(built):
    page = Page((built[1] / "report.html").read_text(encoding="utf-8"))
    assert not any(tag == "i" for tag, _ in page.tags)
    assert "<i>" not in page.text and "explorer-data" in (built[1] / "report.html").read_text(encoding="utf-8")
    # The code of the page and of the explorer, and the data of both.
    assert sum(tag == "script" for tag, _ in page.tags) == 4


def test_the_page_shows_results_and_settings(built):
    text = Page((built[1] / "report.html").read_text(encoding="utf-8")).text
    for name in ("learning rate", "epochs", "batch size", "LoRA dropout", "MC samples K", "forward_kl, T=1, weight 1"):
        assert name in text
    assert "In distribution (toy, 9 examples), paper_top50 (-0.350" in text and "has a lower loss than mle; " in text
    assert "Out of distribution (far, 9 examples), paper_top50 (-0.350" in text
    for heading in ("How many tokens to select", "Do selections take the same tokens?", "±"):
        assert heading in text
    assert "1 of the 2 question templates in test also occur in train (1 of 2 test examples)" in text
    assert "1 of 2 test questions occur word for word in train" in text
    assert "BALD is 0 by construction" in text
    assert "training auto, tables auto, BALD float32" in text


def test_the_page_gives_the_noise_floor_of_bald(built):
    text = Page((built[1] / "report.html").read_text(encoding="utf-8")).text
    _, uncertainty = tiny_tables.losses_and_uncertainty()
    # As in tiny_tables: a thousandth of each token's BALD, on the first 50 tokens; a standard error of a quarter.
    floor, mean = uncertainty["bald"].head(50).mean() / 1000, uncertainty["bald"].mean()
    assert f"Mean BALD is {mean:.3g} nats per token. Its noise floor" in text
    assert f"on 50 tokens, is {floor:.2g} nats, {floor / mean:.2%} of it." in text
    assert f"draws of its 5 masks is {mean / 4:.2g} nats" in text and "low by about the factor 4/5" in text


def test_a_store_without_a_bald_reference_is_told_what_to_materialise(quick_plots, tmp_path):
    with pytest.raises(InputError, match="toy/token_uncertainty was made by an earlier version: materialise it again"):
        build_report(tmp_path, bald_reference=None)


@pytest.mark.parametrize(
    "table, key, names",
    [
        ("ablation_table", "model", ["base", "teacher", *ABLATIONS]),
        ("family_table", "family", ["base", "teacher", "mle", "paper_top25", "paper_top50"]),
    ],
)
def test_json_and_csv_have_the_same_rows(built, table, key, names):
    result, out = built
    rows = json.loads((out / f"{table}.json").read_text())
    losses = {f"loss_{row['dataset']}_{row['family']}": row["value"] for row in rows if "family" in row}
    assert table == "ablation_table" or losses.items() <= result.metrics.items()
    assert list(dict.fromkeys(row[key] for row in rows)) == names
    assert len(rows) == len(names) * 2 and result.metrics["models"] == 6 and result.metrics["families"] == 3
    with open(out / f"{table}.csv", newline="") as file:
        written = list(csv.DictReader(file))
    for row, text in zip(rows, written, strict=True):
        assert {"value", "ci_low", "ci_high", "n", "higher_is_better"} <= text.keys() == row.keys()
        assert float(text["value"]) == row["value"] and text[key] == row[key]
    assert len(result.plots) == 5
    for file in result.plots.values():
        assert (out.parent / file).is_file()


def test_the_terminal_shows_families_if_one_has_several_seeds(built):
    text = report_text(built[1])
    assert "mle (all, 2 seeds)" in text and "paper_top50 (dynamic)" in text and "better" in text


@pytest.fixture
def quick_plots(monkeypatch):
    leave_out_pictures(monkeypatch)


def test_the_data_version_follows_the_tables(built, quick_plots, tmp_path):
    result, _ = built
    again, _ = build_report(tmp_path / "again")
    other, _ = build_report(tmp_path / "other", **{"evaluations/mle": tiny_tables.evaluations(1.51, 0.3)})
    assert again.data_version == result.data_version != other.data_version


def test_a_dataset_without_templates_is_described_so(quick_plots, tmp_path):
    examples = tiny_tables.examples_table().with_columns(source=pl.lit("{}"))
    _, out = build_report(tmp_path, **{"examples/toy": examples})
    assert "does not say which question templates" in Page((out / "report.html").read_text(encoding="utf-8")).text


def test_a_study_of_one_family_has_neither_curves_nor_overlap(quick_plots, tmp_path):
    result, out = build_report(tmp_path, {"mle": ABLATIONS["mle"]})
    assert set(result.plots) == {"In distribution against OOD", "Training curves", "Loss against BALD"}
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "nothing to compare it with" in result.metrics["verdict"]
    assert "How many tokens to select" not in text and "Do selections take the same tokens?" not in text
    assert report_text(out).splitlines()[6].split()[0] == "mle"


def test_ablations_beyond_the_page_limit_are_counted(quick_plots, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "CURRICULA_IN_FULL", 1)
    monkeypatch.setattr(sections, "CURRICULA_COLLAPSED", 2)
    _, out = build_report(tmp_path)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count(": selected tokens</figcaption>") == 3 and "1 more would make the page too large" in text


def test_many_ablations_show_the_first_families_and_hide_the_rest(quick_plots, tmp_path):
    many = {"mle": ABLATIONS["mle"], "mle_s1": ABLATIONS["mle_s1"]}
    many |= {f"r{n}": AblationSpec(name=f"r{n}", select={"by": "random", "quantile": 0.1 * n}) for n in range(1, 9)}
    _, out = build_report(tmp_path, many)
    text = (out / "report.html").read_text(encoding="utf-8")
    section = text[text.index("The curriculum that selection makes</h2>") :]
    shown, _, hidden = section.partition("<details>")
    hidden = hidden.partition("</details>")[0]
    names = re.compile(r"<figcaption>(\w+): selected tokens")
    assert names.findall(shown) == ["mle", *(f"r{n}" for n in range(1, sections.CURRICULA_IN_FULL))]
    assert names.findall(hidden) == ["mle_s1", "r8"] and "2 more ablations" in hidden


@pytest.mark.slow
def test_reports_and_analysis_import_no_torch():
    names = (
        "plots",
        "family_plots",
        "html",
        "explorer",
        "token_text",
        "token_plots",
        "ablation_table",
        "family_table",
        "family_sections",
        "sections",
    )
    modules = [f"tokenuq_ml.reports.{name}" for name in names]
    modules += ["tokenuq_ml.scoring.correlations", "tokenuq_ml.stages.correlate"]
    code = f"""
import sys
import tokenuq_ml.reports.text
assert not {{'torch', 'matplotlib', 'polars'}} & set(sys.modules)
import {", ".join(modules)}
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
