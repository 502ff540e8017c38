"""The length-controlled win rate from synthetic hub files: a known effect of length is removed."""

import json

import huggingface_hub
import numpy as np
import polars as pl
import pytest

from tokenuq_ml.evaluation.judge import load_package
from tokenuq_ml.evaluation.length_control import INSTRUCTIONS, LeftOut, length_controlled_examples

COUNT = 60


def judged(slope: float, seed: int = 0) -> pl.DataFrame:
    """Verdicts that lean to the longer output by `slope`, on responses that are mostly the longer ones."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(60, 240, COUNT)
    lean = slope * np.tanh((lengths - 100) / lengths.std())
    return pl.DataFrame(
        {
            "example_id": [f"alpaca/{index:03d}" for index in range(COUNT)],
            "prompt": [f"Do {index}." for index in range(COUNT)],
            "response": ["x" * int(length) for length in lengths],
            "reference": ["y" * 100] * COUNT,
            "preferred": 1 / (1 + np.exp(-lean)),
        }
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The files of the hub: the instructions, and verdicts on two models that were told to be brief and verbose."""
    (tmp_path / INSTRUCTIONS).write_text(json.dumps([{"instruction": f"Do {index}."} for index in range(COUNT)]))
    draw = np.random.default_rng(1)
    gamed = [
        {
            "model": model,
            "index": index,
            "preference": 0.5,
            "std_delta_len": sign * draw.uniform(0.5, 1.5),
            "instruction_difficulty": difficulty,
            "not_gamed_baseline": False,
        }
        for model, sign in (("brief", 1), ("verbose", -1))
        for index, difficulty in enumerate(np.random.default_rng(2).normal(size=COUNT))
    ]
    pl.DataFrame(gamed).write_csv(tmp_path / "df_gamed.csv")

    def download(repo_id, filename, **_):
        return str(tmp_path / filename)

    load_package()
    from alpaca_eval.metrics import glm_winrate

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **asked: download(**asked))


def test_the_effect_of_length_is_removed(hub):
    frame = judged(slope=2.0)
    examples = length_controlled_examples(frame, "alpaca", "ood")
    controlled = examples["numerator"].sum() / examples["denominator"].sum()
    assert set(examples["metric"]) == {"length_controlled_win_rate"} and len(examples) == COUNT
    raw = frame["preferred"].mean()
    # Verdicts by length alone are even at equal lengths.
    assert raw > 0.65 and abs(controlled - 0.5) < 0.4 * (raw - 0.5)


def test_pairs_without_a_verdict_are_left_out(hub):
    frame = judged(slope=1.0).with_columns(preferred=pl.when(pl.int_range(pl.len()) > 4).then(pl.col("preferred")))
    assert (
        length_controlled_examples(frame, "alpaca", "ood")["example_id"].to_list() == frame["example_id"][5:].to_list()
    )


def test_an_instruction_outside_alpaca_eval_is_named(hub):
    frame = judged(slope=1.0).with_columns(
        prompt=pl.col("prompt").str.replace("Do 7.", "Do something else.", literal=True)
    )
    with pytest.raises(LeftOut, match="alpaca/007 is none of the 60 whose difficulty is known"):
        length_controlled_examples(frame, "alpaca", "ood")


def test_without_the_hub_the_reason_is_given():
    with pytest.raises(LeftOut, match="no length-controlled win rate: LocalEntryNotFoundError"):
        length_controlled_examples(judged(slope=1.0), "alpaca", "ood")
