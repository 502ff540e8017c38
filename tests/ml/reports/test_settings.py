"""The setting of each family: chosen by validation losses alone, told with what was tried, and shown on the page."""

import json

import polars as pl
import pytest

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_report import build_report
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.reports.settings import compared, setting_rows, settings_note, settings_table
from tokenuq_ml.reports.text import report_text

TRAIN = TrainSpec(learning_rate=5e-4)


def ablation(name: str, seed: int = 0, **train) -> AblationSpec:
    return AblationSpec(name=name + (f"_s{seed}" if seed else ""), select="all", seed=seed, train=train)


def losses(*per_example: float, tokens: int = 4) -> pl.DataFrame:
    """Of examples with these mean losses."""
    rows = [{"example_id": f"v{n}", "loss": loss * tokens, "tokens": tokens} for n, loss in enumerate(per_example)]
    return pl.DataFrame(rows)


def metric(model: str, split: str, value: float) -> dict:
    return {"model": model, "split": split, "dataset": "toy", "metric": "loss", "value": value}


ABLATIONS = {
    one.name: one
    for one in (
        *(ablation("mle", seed) for seed in (0, 1)),
        *(ablation("mle_lr0p001", seed, learning_rate=1e-3) for seed in (0, 1)),
        *(ablation("mle_lr0p01", seed, learning_rate=1e-2) for seed in (0, 1)),
        ablation("single"),
    )
}
VALIDATION = {
    "mle": losses(2.0, 2.0),
    "mle_s1": losses(2.2, 2.2),
    # Each seed's mean is 1.5 and 1.7; the best single model of the family is of the worst setting.
    "mle_lr0p001": losses(1.0, 2.0),
    "mle_lr0p001_s1": losses(1.7, 1.7),
    "mle_lr0p01": losses(1.4, 1.4),
    "mle_lr0p01_s1": losses(4.0, 4.0),
}
# On test, another setting would have been the best.
MODELS = [metric(name, "test", 9.0 if "lr0p001" in name else 1.0) for name in ABLATIONS]


def rows() -> list[dict]:
    return setting_rows(ABLATIONS, VALIDATION, MODELS, TRAIN)


def test_the_setting_with_the_lowest_mean_validation_loss_is_chosen_whatever_test_says():
    found = {row["setting"]: row for row in rows()}
    assert list(found) == ["mle", "mle_lr0p001", "mle_lr0p01"]
    assert found["mle_lr0p001"]["validation_loss"] == pytest.approx(1.6)
    assert found["mle_lr0p001"]["validation_spread"] == pytest.approx(0.2 / 2**0.5)
    assert [row["chosen"] for row in found.values()] == [False, True, False]
    assert found["mle_lr0p001"]["test toy"] == 9.0
    assert list(compared(ABLATIONS, rows())) == ["mle_lr0p001", "mle_lr0p001_s1", "single"]


def test_longer_examples_count_more():
    """The criterion is the loss per token, not per example."""
    pair = {one.name: one for one in (ablation("mle"), ablation("mle_lr0p001", learning_rate=1e-3))}
    long, short = losses(1.0, tokens=10), losses(3.0).with_columns(example_id=pl.lit("v1"))
    validation = {"mle": pl.concat([long, short]), "mle_lr0p001": losses(1.8, 1.8)}
    # (10 + 12) / 14 is below 1.8, and the mean over examples, 2, above.
    assert [row["chosen"] for row in setting_rows(pair, validation, [], TRAIN)] == [True, False]


def test_a_setting_at_the_edge_of_what_was_tried_is_named():
    assert [row["at_edge"] for row in rows()] == [[], [], []]
    higher = VALIDATION | {"mle_lr0p01": losses(1.0), "mle_lr0p01_s1": losses(1.0)}
    found = setting_rows(ABLATIONS, higher, MODELS, TRAIN)
    assert [row["at_edge"] for row in found] == [[], [], ["learning rate 0.01"]]
    note = settings_note(found)
    assert "mle: learning rate 0.01 (of 3)" in note and "widen the sweep" in note
    assert "widen" not in settings_note(rows())
    assert "at the edge" in settings_table(found)


def test_families_of_one_setting_have_no_rows():
    assert setting_rows({"mle": ablation("mle"), "single": ablation("single")}, {}, MODELS, TRAIN) == []
    assert settings_note([]) == ""


@pytest.mark.slow
def test_the_page_compares_families_at_their_settings(monkeypatch, tmp_path):
    leave_out_pictures(monkeypatch)
    half = AblationSpec(name="half", select={"by": "loss", "quantile": 0.5}, budget="equal_tokens")
    ablations = {name: one for name, one in ABLATIONS.items() if one.seed == 0 and name != "single"} | {"half": half}
    tables = {f"validation_losses/{name}": VALIDATION[name] for name in ablations if name in VALIDATION}
    _, out = build_report(tmp_path, ablations, **tables)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "All settings (3)" in text and "mle: learning rate 0.01 (of 3)" in text and "equal tokens" in text
    families = json.loads((out / "family_table.json").read_text())
    assert {row["models"] for row in families} == {"base", "teacher", "mle_lr0p01", "half"}
    assert {row["setting"] for row in families if row["family"] == "mle"} == {"learning rate 0.01"}
    settings = json.loads((out / "setting_table.json").read_text())
    assert [row["setting"] for row in settings] == ["mle", "mle_lr0p001", "mle_lr0p01"]
    assert pl.read_csv(out / "setting_table.csv")["chosen"].to_list() == [False, False, True]
    assert "mle (all, learning rate 0.01)" in report_text(out)
