"""The cost table on records whose figures are known."""

import doctest
import json
import re
from html.parser import HTMLParser

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.costs.flops import PUBLISHED, Architecture, flops
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.reports import costs_table
from tokenuq_ml.reports.costs_table import cost_rows, costs_section, prediction_rows

SMOL = Architecture(30, 576, 1536, 9, 3, 64, 49_152, tied=True)


def record(total=40.0, steps=10, selected=1.0, distilled=0.0, **changes) -> CostRecord:
    """`steps` steps of 1,600 tokens (1,500 without padding) in 8 sequences, 800 of them response tokens."""
    seconds = {"forward": 10, "head": 8, "backward": 14, "teacher": 1, "selection": 2, "other": total - 35}
    return CostRecord(
        **{
            "steps": steps,
            "sequences": 8 * steps,
            "tokens": 1500 * steps,
            "padded_tokens": 1600 * steps,
            "response_tokens": 800 * steps,
            "mle_tokens": int(800 * steps * selected),
            "distilled_tokens": int(800 * steps * distilled),
            "selection": "all" if selected == 1 else "dynamic",
            "selection_needs_loss": selected < 1,
            "teacher": "mean_embeddings" if distilled else "none",
            "lora_rank": 32,
            "attended": 160_000 * steps,
            "seconds": {**seconds, "total": total},
            **changes,
        }
    )


RECORDS = {
    "mle": record(),
    "masked": record(total=36.0, selected=0.25),
    "paper": record(total=44.0, selected=0.25, distilled=0.75),
    "online": record(total=60.0, selected=0.25, distilled=0.75, teacher="online"),
}


class Tables(HTMLParser):
    """Cells of each table, and the text of each paragraph."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.paragraphs, self._inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._inside == "p":
            self.paragraphs[-1] += data


class TestCostRows:
    def test_figures_of_one_training(self):
        rows = {row["ablation"]: row for row in cost_rows(RECORDS, SMOL)}
        mle, paper = rows["mle"], rows["paper"]
        assert list(rows) == list(RECORDS)
        assert (mle["mle_share"], mle["distilled_share"]) == (1, 0)
        assert (paper["mle_tokens"], paper["distilled_tokens"]) == (2000, 6000)
        assert (mle["seconds_step"], mle["seconds_step_head"], mle["seconds_step_other"]) == (4.0, 0.8, 0.5)
        assert (mle["tokens_per_second"], mle["response_tokens_per_second"]) == (375, 200)
        assert paper["seconds_ratio"] == pytest.approx(1.1) and mle["seconds_ratio"] == 1

    def test_flops_are_those_of_the_cost_model(self):
        rows = {row["ablation"]: row for row in cost_rows(RECORDS, SMOL)}
        for name, row in rows.items():
            work = flops(SMOL, RECORDS[name].step())
            parts = ("forward", "head", "backward", "teacher", "selection")
            assert row["gflops_step"] == pytest.approx(sum(row[f"gflops_step_{part}"] for part in parts))
            assert row["gflops_step_head"] == pytest.approx(work.head / 1e9)
            assert row["flops_total"] == pytest.approx(10 * work.total)
            assert row["gflops_per_second"] == pytest.approx(row["flops_total"] / 1e9 / row["seconds_total"])
        # Two products for every token, as mle; half a product less; and a forward pass more.
        assert rows["paper"]["flops_ratio"] == pytest.approx(1)
        assert rows["masked"]["flops_ratio"] < 1 < 1.4 < rows["online"]["flops_ratio"]

    def test_ratios_compare_equal_numbers_of_tokens(self):
        """A resumed run counts its own steps alone."""
        halved = {"mle": record(), "resumed": record(total=40.0, steps=5)}
        row = cost_rows(halved, SMOL)[1]
        assert (row["seconds_ratio"], row["flops_ratio"]) == (pytest.approx(2), pytest.approx(1))

    def test_ratios_compare_with_all_seeds_of_the_reference(self):
        seeds = {"mle": record(total=40.0), "mle_s1": record(total=50.0)}
        ratios = [row["seconds_ratio"] for row in cost_rows(seeds, SMOL, {"mle": "mle", "mle_s1": "mle"})]
        assert ratios == pytest.approx([40 / 45, 50 / 45])

    def test_without_the_reference_there_is_no_ratio(self):
        row = cost_rows({"paper": RECORDS["paper"]}, SMOL)[0]
        assert row["seconds_ratio"] is None and row["flops_ratio"] is None


class TestPredictions:
    def test_every_family_is_predicted_at_every_size(self):
        records = {**RECORDS, "mle_s1": record(total=50.0)}
        rows = prediction_rows(records, {"mle_s1": "mle"}, rate=1e12)
        assert [(row["ablation"], row["model"]) for row in rows] == [
            (family, model) for model in PUBLISHED for family in RECORDS
        ]
        for row in rows:
            work = flops(PUBLISHED[row["model"]], RECORDS[row["ablation"]].step())
            assert row["flops_step"] == pytest.approx(work.total)
            assert row["seconds_step"] == pytest.approx(work.total / 1e12)
            assert row["head_share"] == pytest.approx(work.head / work.total)

    def test_predictions_use_the_lengths_of_the_reference(self):
        longer = record(steps=10, selected=0.25, tokens=30_000, padded_tokens=32_000, attended=3_200_000)
        both = prediction_rows({"mle": record(), "masked": longer})
        assert both[1]["flops_step"] == pytest.approx(prediction_rows(RECORDS)[1]["flops_step"])

    def test_selection_saves_less_in_larger_models(self):
        ratios = [row["flops_ratio"] for row in prediction_rows(RECORDS) if row["ablation"] == "masked"]
        assert ratios == sorted(ratios) and ratios[0] < ratios[-1] < 1


class TestSection:
    def test_tables_show_the_rows(self):
        fragment, rows = costs_section(RECORDS, SMOL)
        totals, seconds, gflops, predicted = Tables(fragment).tables
        for shown in (totals, seconds, gflops, predicted):
            assert [line[0] for line in shown] == ["ablation", *RECORDS]
            assert len({len(line) for line in shown}) == 1
        by_name = dict(zip(totals[0], totals[3], strict=True))
        assert by_name["by cross-entropy"] == "2,000 (25.0%)" and by_name["distilled"] == "6,000 (75.0%)"
        assert by_name["total seconds"] == "44.0" and by_name["seconds ratio"] == "1.10"
        assert dict(zip(seconds[0], seconds[1], strict=True))["backward"] == "1.40"
        head = dict(zip(gflops[0], gflops[1], strict=True))["head"]
        assert float(head) == pytest.approx(rows["measured"][0]["gflops_step_head"], rel=0.01)
        last = dict(zip(predicted[0], predicted[4], strict=True))["Llama-3.1-70B TFLOP"]
        assert float(last.replace(",", "")) == pytest.approx(rows["predicted"][-1]["flops_step"] / 1e12, rel=0.01)

    def test_rows_can_be_written_as_json(self):
        _, rows = costs_section(RECORDS, SMOL)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows

    def test_the_upper_bound_of_savings_is_given(self):
        fragment, rows = costs_section(RECORDS, SMOL)
        text = Tables(fragment).paragraphs[-1]
        share = rows["measured"][0]["gflops_step_head"] / rows["measured"][0]["gflops_step"]
        assert f"are {share:.1%} of the FLOPs" in text
        assert re.search(r"masked 0\.90, paper 1\.10, online 1\.50\.$", text)

    def test_the_assumed_rate_and_lengths_are_given(self):
        text = " ".join(Tables(costs_section(RECORDS, SMOL, rate=250e12)[0]).paragraphs)
        assert "8 sequences, 1,600 tokens with padding, 800 response tokens" in text and "250 TFLOP/s" in text

    def test_a_study_without_the_reference_has_no_ratio(self):
        fragment, _ = costs_section({"paper": RECORDS["paper"]}, SMOL)
        assert Tables(fragment).tables[0][1][-1] == "—" and "Measured seconds" not in fragment

    def test_many_seeds_are_collapsed_below_their_families(self, monkeypatch):
        monkeypatch.setattr(costs_table, "MOST_ROWS", 3)
        records = {f"{name}_s{seed}": one for name, one in RECORDS.items() for seed in (1, 2)}
        fragment, rows = costs_section(records, SMOL, {name: name.rpartition("_s")[0] for name in records})
        shown, collapsed = fragment.split("<details>")
        first, every = Tables(shown).tables[0], Tables(collapsed).tables[0]
        assert [row[0] for row in first[1:]] == list(RECORDS) and [row[0] for row in every[1:]] == list(records)
        assert [row["ablation"] for row in rows["measured"]] == list(records)
        place = first[0].index("total seconds")
        for number, row in enumerate(first[1:]):
            seeds = every[1 + 2 * number : 3 + 2 * number]
            assert float(row[place]) == pytest.approx(sum(float(seed[place]) for seed in seeds), rel=0.01)
        # Families of one seed are their ablations.
        assert "<details>" not in costs_section(records, SMOL)[0]

    def test_a_study_without_records_has_a_note(self):
        fragment, rows = costs_section({}, SMOL)
        assert "has a record of its costs" in fragment and rows == {"measured": [], "predicted": []}

    def test_a_training_without_response_tokens_is_shown(self):
        none = record(response_tokens=0, mle_tokens=0)
        fragment, _ = costs_section({"mle": none}, SMOL)
        assert "0 (—)" in fragment

    def test_names_are_escaped(self):
        assert "<b>" not in costs_section({"<b>": record()}, SMOL)[0]


def test_every_number_of_the_docs_is_computed():
    outcome = doctest.testfile(str(ROOT / "docs" / "costs.md"), module_relative=False)
    assert outcome.attempted > 10 and outcome.failed == 0
