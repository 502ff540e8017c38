"""The evaluation of one model: resuming after an interruption, and notes on what is left out."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.support.evaluator import SUMS, Evaluator, metrics
from tests.support.fake_endpoint import KEY, endpoint, outputs, verdict
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import generation, ifbench
from tokenuq_ml.stages.evaluate_model import forget_answers
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.slow

GSM8K = {"dataset": "sums", "num_fewshot": 1, "max_new_tokens": 6, "batch_size": 3}
ALPACA = {"dataset": "sums", "max_new_tokens": 6}
LOOSE = "ifbench_prompt_level_loose_acc"


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return Evaluator(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(autouse=True)
def fresh(evaluator):
    yield
    forget_answers(evaluator.request)


@pytest.fixture
def batches(monkeypatch):
    """The batches that are generated; Ctrl-C comes before the one whose number is put into `stop`."""
    made, stop, real = [], [], generation.decode

    def counting(start, prompts, *rest):
        if len(made) in stop:
            raise KeyboardInterrupt
        made.append(prompts)
        return real(start, prompts, *rest)

    monkeypatch.setattr(generation, "decode", counting)
    counting.made, counting.stop = made, stop
    return counting


def test_an_interrupted_evaluation_resumes_to_the_same_tables(evaluator, batches, tmp_path):
    digest, _ = evaluator.evaluate(tmp_path / "whole", {"gsm8k": GSM8K})
    whole = list(batches.made)
    assert [len(batch) for batch in whole] == [3, 1]
    forget_answers(evaluator.request)
    batches.made.clear()
    batches.stop.append(1)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(tmp_path / "halted", {"gsm8k": GSM8K})
    assert not (tmp_path / "halted/evaluations").exists()
    batches.stop.clear()
    assert evaluator.evaluate(tmp_path / "resumed", {"gsm8k": GSM8K})[0] == digest
    assert batches.made == whole
    assert read_table(tmp_path / "resumed/gsm8k_answers").equals(read_table(tmp_path / "whole/gsm8k_answers"))


def test_cached_answers_of_another_model_or_other_settings_are_not_used(evaluator, batches, tmp_path):
    alone = {}
    for adapter in (1, 2, None):
        evaluator.evaluate(tmp_path / f"alone{adapter}", {"gsm8k": GSM8K}, adapter)
        alone[adapter] = read_table(tmp_path / f"alone{adapter}/gsm8k_answers")
        forget_answers(evaluator.request)
    assert not alone[1].equals(alone[2]) and not alone[1].equals(alone[None])
    batches.made.clear()
    for adapter in (1, 2, None):
        evaluator.evaluate(tmp_path / "after", {"gsm8k": GSM8K}, adapter)
        assert read_table(tmp_path / "after/gsm8k_answers").equals(alone[adapter])
    assert len(batches.made) == 6
    evaluator.evaluate(tmp_path / "longer", {"gsm8k": {**GSM8K, "max_new_tokens": 7}}, 1)
    assert len(batches.made) == 8
    evaluator.evaluate(tmp_path / "again", {"gsm8k": GSM8K}, 1)
    assert len(batches.made) == 8


@pytest.mark.parametrize("split", ["test", "ood"])
def test_gsm8k_asks_the_held_out_rows_and_counts_as_its_split(evaluator, tmp_path, split):
    evaluator.evaluate(tmp_path, {"gsm8k": {**GSM8K, "split": split, "chat": split == "test"}})
    answers = read_table(tmp_path / "gsm8k_answers")
    assert answers["example_id"].to_list() == [f"sums/{number}" for number in range(3, 7)]
    assert answers["prompt"].to_list() == SUMS[3:] and (answers["n_tokens"] <= 6).all()
    row = metrics(tmp_path)["exact_match_strict"]
    assert (row["dataset"], row["split"], row["n"]) == ("sums", split, 4)
    assert row["value"] == answers["strict_match"].mean()


def test_ifbenchs_answers_are_checked_and_prompts_that_cannot_be_are_named(evaluator, tmp_path, monkeypatch):
    prompts = ifbench.load_prompts(7).asked
    instruction = prompts[0].instructions[0]
    others = [prompt for prompt in prompts if instruction not in prompt.instructions]
    assert 0 < len(others) < len(prompts)
    monkeypatch.setitem(ifbench.NLTK_DATA, instruction, "corpora/nowhere")
    _, figures = evaluator.evaluate(tmp_path, {"ifbench": {"limit": len(prompts), "max_new_tokens": 4}})
    answers = read_table(tmp_path / "ifbench_answers")
    assert answers["example_id"].to_list() == [one.example.id for one in others] and (answers["n_tokens"] <= 4).all()
    row = metrics(tmp_path)["prompt_level_loose_acc"]
    assert (row["dataset"], row["split"], row["n"], row["value"]) == ("ifbench", "ood", len(others), figures[LOOSE])
    assert row["value"] == answers["prompt_level_loose"].mean()
    assert figures["ifbench_left_out"] == len(prompts) - len(others)
    assert prompts[0].example.id in figures["ifbench_left_out_prompts"]
    assert any("python -m nltk.downloader nowhere" in line for line in evaluator.reporter.lines)


def test_a_missing_package_of_ifbench_is_named_before_anything_is_generated(evaluator, batches, tmp_path, monkeypatch):
    ifbench.load_checkers.cache_clear()
    monkeypatch.setitem(sys.modules, "ifbench", None)
    try:
        with pytest.raises(InputError, match="evaluation.ifbench needs the package ifbench"):
            evaluator.evaluate(tmp_path, {"gsm8k": GSM8K, "ifbench": {}})
    finally:
        ifbench.load_checkers.cache_clear()
    assert not batches.made


def test_an_unknown_evaluator_of_a_judge_is_named_before_anything_is_generated(evaluator, batches, tmp_path):
    judge = {"base_url": "http://localhost:1/v1", "model": "judge", "annotator": "nobody"}
    with pytest.raises(InputError, match="judge.annotator: alpaca_eval has no evaluator 'nobody'"):
        evaluator.evaluate(tmp_path, {"gsm8k": GSM8K, "alpaca_eval": {**ALPACA, "judge": judge}})
    assert not batches.made


def test_calibration_error_follows_from_the_models_probabilities(evaluator, tmp_path):
    """Ten bins filled by hand, from plain forward passes."""
    evaluator.evaluate(tmp_path, {"calibration_bins": 10})
    confidence, right = [], []
    for example in evaluator.examples[3:]:
        with torch.no_grad():
            p = evaluator.adapters[1](torch.tensor([example.input_ids])).logits[0].softmax(-1)
        for position in example.positions:
            top = p[position - 1].max(0)
            confidence.append(top.values.item())
            right.append(top.indices.item() == example.input_ids[position])
    table = pl.DataFrame({"p": confidence, "right": right}).with_columns(bin=(pl.col("p") * 10).ceil())
    gaps = table.group_by("bin").agg(pl.len(), gap=(pl.col("right").mean() - pl.col("p").mean()).abs())
    expected = (gaps["len"] * gaps["gap"]).sum() / len(table)
    assert metrics(tmp_path)["calibration_error"]["value"] == pytest.approx(expected, rel=1e-4)
    assert set(metrics(tmp_path)) == {"loss", "token_accuracy", "calibration_error"}


JUDGES = [
    (None, "the study names no judge"),
    ({"base_url": "http://127.0.0.1:9/v1", "model": "j"}, "http://127.0.0.1:9/v1 cannot be reached"),
    ({"base_url": "http://127.0.0.1:9/v1", "model": "j", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
]


@pytest.mark.parametrize("judge, why", JUDGES)
def test_without_a_judge_nothing_is_generated_and_the_note_says_why(evaluator, batches, tmp_path, judge, why):
    _, figures = evaluator.evaluate(tmp_path, {"alpaca_eval": {**ALPACA, "judge": judge}})
    assert figures["alpaca_eval"].startswith("left out: no win rate: ") and why in figures["alpaca_eval"]
    assert any(why in line for line in evaluator.reporter.lines)
    assert not batches.made and len(read_table(tmp_path / "alpaca_eval_verdicts")) == 0
    assert not {"win_rate", "position_bias"} & set(metrics(tmp_path)) and "sums_win_rate" not in figures


def test_an_endpoint_that_fails_midway_is_asked_again_but_answers_are_cached(evaluator, batches, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    asked = []

    def answer(body: dict) -> dict:
        asked.append(body)
        if len(asked) == 5 and not batches.stop:
            batches.stop.append(-1)
            raise RuntimeError("out of credit")
        # The reference's outputs hold a plus.
        return verdict(0.25 if "+" in outputs(body)[1] else 0.75)

    with endpoint(answer) as served:
        judge = {"base_url": served.url, "model": "j", "api_key_env": "JUDGE_KEY"}
        evaluation = {"alpaca_eval": {**ALPACA, "judge": judge}}
        _, figures = evaluator.evaluate(tmp_path / "one", evaluation)
        assert "out of credit" in figures["alpaca_eval"] and "win_rate" not in metrics(tmp_path / "one")
        generated = len(batches.made)
        _, figures = evaluator.evaluate(tmp_path / "two", evaluation)
    # The answers were there; no verdict was, since they are kept a batch at a time.
    assert len(batches.made) == generated
    rows = metrics(tmp_path / "two")
    assert figures["sums_win_rate"] == rows["win_rate"]["value"] == pytest.approx(0.25)
    assert rows["position_bias"]["value"] == 0 and rows["win_rate"]["n"] == 4 and figures["alpaca_eval_unjudged"] == 0
    assert rows["position_bias"]["higher_is_better"] is None
    assert figures["length_controlled_win_rate"].startswith("left out: no length-controlled win rate: ")
    assert "length_controlled_win_rate" not in rows
    # The key is nowhere in what is stored.
    stored = [path for path in (*tmp_path.rglob("*"), *Path(evaluator.request.work_dir).rglob("*")) if path.is_file()]
    assert len(stored) > 5 and not any(KEY.encode() in path.read_bytes() for path in stored)


def test_a_local_model_judges(evaluator, tmp_path):
    judge = {"local_model": "tiny"}
    evaluator.evaluate(tmp_path, {"alpaca_eval": {**ALPACA, "judge": judge}}, judge=str(evaluator.folder / "model"))
    table = read_table(tmp_path / "alpaca_eval_verdicts")
    assert len(table) == 4 and table["preferred"].is_between(0, 1).all()
    assert metrics(tmp_path)["win_rate"]["value"] == pytest.approx(table["preferred"].mean())
    assert metrics(tmp_path)["position_bias"]["value"] == table["flipped"].mean()


def test_a_prompt_beyond_the_models_context_loses_its_beginning_with_a_warning(evaluator, batches, tmp_path):
    evaluator.evaluate(tmp_path, {"gsm8k": {**GSM8K, "max_new_tokens": 500}})
    assert all(len(ids) == 12 for batch in batches.made for ids in batch)
    assert any("4 of 4 prompts lose their beginning" in line for line in evaluator.reporter.lines)


def test_forget_answers_deletes_the_caches(evaluator, tmp_path):
    evaluator.evaluate(tmp_path, {"gsm8k": GSM8K})
    kept = list(Path(evaluator.request.work_dir).rglob("*.jsonl"))
    assert len(kept) == 1 and len(json.loads(kept[0].read_text().splitlines()[0])) == 3
    # Without its judge's verdicts the evaluation is to be repeated.
    forget_answers(evaluator.request, {"sums_loss": 1.0, "base_alpaca_eval": "left out: no win rate"})
    assert kept[0].is_file()
    forget_answers(evaluator.request, {"sums_loss": 1.0, "alpaca_eval": "left out: the study names no judge; give one"})
    assert not list(Path(evaluator.request.work_dir).rglob("*.jsonl"))
