"""The result tables as text for the terminal."""

import json

from tests.support import tiny_tables
from tokenuq_ml.config import AblationSpec, EvaluationSpec
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.family_table import family_rows
from tokenuq_ml.reports.text import IFEVAL, WIDTH, ablation_table_text, family_table_text, report_text


class TestAblations:
    def rows(self, models, ood=("far",)):
        return table_rows({name: tiny_tables.evaluations(loss, 0.1, ood=ood) for name, loss in models.items()})

    def test_models_are_rows_and_metrics_are_columns(self):
        lines = ablation_table_text(self.rows({"base": 3.0, "mle": 1.0})).splitlines()
        assert lines[0].split() == ["toy", "(test)", "far", "(ood)"] and lines[1].split() == ["loss", "loss"]
        assert [line.split()[0] for line in lines[4:6]] == ["base", "mle"]
        assert lines[4].split(maxsplit=1)[1].split() == ["3.000", "[2.900,", "3.100]"] * 2
        assert lines[5].count("*1.000 [0.900, 1.100]") == 2 and "*" not in lines[4]
        assert lines[3].split() == ["n=9", "n=9"] and lines[2].count("lower is better") == 2

    def test_metrics_whose_intervals_all_overlap_are_marked_indistinct(self):
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

    def test_no_rows_give_no_text(self):
        assert ablation_table_text([]) == ""

    def test_losses_come_first_and_the_accuracies_of_ifeval_are_one_column(self):
        rows = self.rows({"base": 3.0, "mle": 1.0})
        accuracies = [
            {**row, "dataset": "ifeval", "metric": metric, "value": number / 10, "higher_is_better": True}
            for number, metric in enumerate(reversed(IFEVAL), 1)
            for row in rows
            if row["split"] == "test"
        ]
        lines = ablation_table_text([*accuracies, *rows]).splitlines()
        assert lines[0].split() == ["toy", "(test)", "far", "(ood)", "ifeval", "(test)"]
        assert lines[1].endswith("accuracy: prompt strict/loose,") and lines[2].endswith("instruction strict/loose")
        assert [line.split()[-1] for line in lines[4:6]] == ["0.400/0.300/0.200/0.100"] * 2
        # One of them alone is a metric like any other.
        assert "inst_level_loose_acc" in ablation_table_text(accuracies[:2])


class TestFamilies:
    def rows(self, ood=("far",)):
        ablations = {
            "mle": AblationSpec(name="mle", select="all"),
            "mle_s1": AblationSpec(name="mle_s1", select="all", seed=1),
            "top": AblationSpec(name="top", select={"by": "loss", "quantile": 0.25}),
            "same": AblationSpec(name="same", select={"by": "random", "quantile": 0.25}),
        }
        losses = {"base": 3.0, "mle": 1.0, "mle_s1": 1.2, "top": 0.5, "same": 1.1}
        table = table_rows({name: tiny_tables.evaluations(loss, 0.1, ood=ood) for name, loss in losses.items()})
        examples = {name: tiny_tables.evaluation_examples(loss, ood=ood) for name, loss in losses.items()}
        return family_rows(table, examples, ablations, EvaluationSpec(bootstrap=50))

    def test_families_show_means_spreads_and_differences(self):
        lines = family_table_text(self.rows()).splitlines()
        assert lines[0].split() == ["toy", "(test)", "far", "(ood)"] and "indistinct" not in lines[3]
        base, mle, top, same = lines[4:8]
        assert base.startswith("base  ") and base.count("worse") == 2
        assert mle.startswith("mle (all, 2 seeds)") and mle.count("±0.141") == 2 and "[" not in mle
        assert top.startswith("top (dynamic)") and top.count("-0.600 [-0.700, -0.500] better") == 2
        assert same.startswith("same (static)") and same.count("~") == 2 and "better" not in same

    def test_a_metric_without_direction_has_no_better_side(self):
        told = {"better": "lower", "worse": "higher"}
        rows = [
            {**row, "higher_is_better": None, "verdict": told.get(row["verdict"], row["verdict"])}
            for row in self.rows()
        ]
        lines = family_table_text(rows).splitlines()
        assert lines[2].strip() == "" and "is better" not in "".join(lines[:8]) and "indistinct" not in lines[3]
        assert lines[6].count("-0.600 [-0.700, -0.500] lower") == 2 and lines[7].count("~") == 2

    def test_a_metric_without_a_distinguishable_student_is_marked_indistinct(self):
        rows = [row for row in self.rows() if row["family"] != "top"]
        assert family_table_text(rows).count("n=9 indistinct") == 2

    def test_many_metrics_wrap_to_the_terminal(self):
        text = family_table_text(self.rows(tuple(f"dataset_{i}" for i in range(7))))
        assert max(map(len, text.splitlines())) <= WIDTH and text.count("better") >= 8


def test_families_are_shown_if_one_has_several_seeds(tmp_path):
    assert report_text(tmp_path) == ""
    families, models = TestFamilies().rows(), TestAblations().rows({"base": 3.0, "mle": 1.0})
    (tmp_path / "ablation_table.json").write_text(json.dumps(models))
    assert report_text(tmp_path) == ablation_table_text(models)
    (tmp_path / "family_table.json").write_text(json.dumps(families))
    assert report_text(tmp_path) == family_table_text(families)
    (tmp_path / "family_table.json").write_text(json.dumps([{**row, "n_seeds": 1} for row in families]))
    assert report_text(tmp_path) == ablation_table_text(models)
