"""Result tables as HTML: marks, empty cells, and escaped names."""

import re

from tokenuq_ml.reports.result_tables import ablation_table, family_table


def family(name, difference=None, verdict=None, selection="dynamic", spread=None, dataset="toy", split="test"):
    return {
        "family": name,
        "selection": selection,
        "n_seeds": 1 if spread is None else 3,
        "dataset": dataset,
        "split": split,
        "metric": "loss",
        "value": 1.0,
        "spread": spread,
        "ci_low": 0.9,
        "ci_high": 1.1,
        "n": 9,
        "higher_is_better": False,
        "against": "mle",
        "difference": difference,
        "difference_low": None if difference is None else difference - 0.1,
        "difference_high": None if difference is None else difference + 0.1,
        "verdict": verdict,
    }


def cells(line: str) -> list[str]:
    return [re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", line)]


def lines(table: str) -> list[str]:
    return re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2])


def test_only_distinguishable_differences_of_families_are_marked():
    table = family_table(
        [
            family("base", 0.5, "worse", selection=None),
            family("mle", selection="all", spread=0.0123),
            family("top", -0.5, "better"),
            family("low", 0.01, "not distinguishable"),
        ]
    )
    base, mle, top, low = lines(table)
    assert "class=reference" in base and cells(base)[1] == ["—"]
    assert cells(mle) == [["mle"], ["all"], ["3"], "1.000 ± 0.012 [0.900, 1.100]".split(), ["—"]]
    assert '<td class="better">-0.500 better' in top and '<td class="worse">+0.500 worse' in base
    assert cells(low)[-1] == "not distinguishable +0.010 [-0.090, +0.110]".split() and "better" not in low
    assert "difference<br>to mle" in table


def test_a_family_without_a_metric_has_two_empty_cells():
    table = family_table([family("mle"), family("top", -0.5, "better"), family("mle", dataset="far", split="ood")])
    assert cells(lines(table)[1])[-2:] == [["—"], ["—"]]
    assert table.count('colspan="2"') == 2


def test_single_models_mark_the_best():
    row = {key: family("x")[key] for key in ("dataset", "split", "metric", "value", "ci_low", "ci_high", "n")}
    row |= {"higher_is_better": True, "separated": False}
    table = ablation_table([{**row, "model": "a", "best": True}, {**row, "model": "b", "best": False}])
    a, b = lines(table)
    assert 'class="value best"' in a and "best" not in b
    assert "not distinguishable" in table and "loss&nbsp;↑" in table


def test_a_metric_without_a_direction_has_no_arrow_and_no_colour():
    rows = [family("mle"), family("top", -0.5, "lower"), family("low", 0.01, "not distinguishable")]
    table = family_table([{**row, "higher_is_better": None} for row in rows])
    assert "↑" not in table and "↓" not in table and 'class="better"' not in table and 'class="worse"' not in table
    _, top, low = lines(table)
    assert cells(top)[-1] == "-0.500 lower [-0.600, -0.400]".split() and cells(low)[-1][0] == "not"


def test_names_are_escaped():
    assert "<b>" not in family_table([family("<b>x</b>")])
