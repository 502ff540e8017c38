"""Outputs of a model against those of another model of its study, before a judge at a local endpoint."""

import polars as pl
import pytest

from tests.support.evaluator import SUMS, Evaluator, metrics
from tests.support.fake_endpoint import KEY, endpoint, outputs, text, verdict
from tokenuq_ml.evaluation import generation
from tokenuq_ml.stages.evaluate_model import forget_answers
from tokenuq_ml.tables.parquet import read_table, write_table

pytestmark = pytest.mark.slow

SELF, AGAINST_MLE = {"versus": None}, {"versus": "mle"}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return Evaluator(tmp_path_factory.mktemp("pairwise"))


@pytest.fixture(autouse=True)
def fresh(evaluator, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    yield
    forget_answers(evaluator.request)


def pairwise(url: str, **changes) -> dict:
    judge = {"base_url": url, "model": "judge", "api_key_env": "JUDGE_KEY", **changes}
    return {"pairwise": {"dataset": "sums", "versus": "mle", "max_new_tokens": 6, "judge": judge}}


def longer(body: dict) -> dict:
    """Prefers the longer output, 3 to 1."""
    first, second = outputs(body)
    return verdict(0.75 if len(first) > len(second) else 0.25)


def test_the_other_model_answers_and_is_judged_by_none(evaluator, tmp_path):
    with endpoint(longer) as served:
        evaluator.evaluate(tmp_path, pairwise(served.url), 1, SELF)
    assert not served.requests
    answers = read_table(tmp_path / "pairwise_answers")
    assert answers["prompt"].to_list() == SUMS[3:] and not (tmp_path / "pairwise_verdicts").exists()
    assert metrics(tmp_path)["win_rate_vs_mle"]["value"] == 0.5
    assert "position_bias_vs_mle" not in metrics(tmp_path)


def test_both_orders_are_asked_and_verdicts_are_paid_once(evaluator, tmp_path, monkeypatch):
    asked = []

    def answer(body: dict) -> dict:
        asked.append(outputs(body))
        if len(asked) == 3 and not halted:
            halted.append(True)
            raise RuntimeError("out of credit")
        return longer(body)

    halted: list[bool] = []
    with endpoint(answer) as served:
        spec = pairwise(served.url)
        evaluator.evaluate(tmp_path / "mle", spec, 1, SELF)
        other = {"versus": str(tmp_path / "mle/pairwise_answers")}
        _, figures = evaluator.evaluate(tmp_path / "failed", spec, 2, AGAINST_MLE, **other)
        assert "no win rate against mle" in figures["pairwise"] and "out of credit" in figures["pairwise"]
        assert not len(read_table(tmp_path / "failed/pairwise_verdicts"))
        made: list = []
        real = generation.decode
        monkeypatch.setattr(generation, "decode", lambda *given: made.append(given) or real(*given))
        _, figures = evaluator.evaluate(tmp_path / "top", spec, 2, AGAINST_MLE, **other)
        paid = len(asked)
        evaluator.evaluate(tmp_path / "again", spec, 2, AGAINST_MLE, **other)
    # Neither answers nor verdicts are made twice.
    assert not made and len(asked) == paid
    table = read_table(tmp_path / "top/pairwise_verdicts")
    mle = read_table(tmp_path / "mle/pairwise_answers")
    assert table["reference"].equals(mle["response"]) and set(table["versus"]) == {"mle"}
    for row in table.iter_rows(named=True):
        own, their = row["response"], row["reference"]
        assert own == their or {(own, their), (their, own)} <= set(asked)
        # Of two outputs of one length, the judge prefers whichever comes second: a tie of both orders.
        expected = 0.5 if len(own) == len(their) else 0.75 if len(own) > len(their) else 0.25
        assert row["preferred"] == pytest.approx(expected)
    assert metrics(tmp_path / "top")["win_rate_vs_mle"]["value"] == pytest.approx(table["preferred"].mean())
    assert metrics(tmp_path / "top")["position_bias_vs_mle"]["value"] == table["flipped"].mean()
    assert figures["pairwise_unjudged"] == 0
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.parquet"))


def test_pairs_without_a_verdict_are_counted_and_left_out(evaluator, tmp_path):
    def answer(body: dict) -> dict:
        return text("Both are fine.") if SUMS[3] in body["messages"][-1]["content"] else longer(body)

    with endpoint(answer) as served:
        spec = pairwise(served.url)
        evaluator.evaluate(tmp_path / "mle", spec, 1, SELF)
        answers = read_table(tmp_path / "mle/pairwise_answers")
        # Outputs that differ, so that the judge is asked about every pair.
        changed = answers.with_columns(response=pl.lit("another"))
        write_table(changed, "pairwise_answers", tmp_path / "other", spec_hash="s", code_version="1-s")
        inputs = {"versus": str(tmp_path / "other")}
        _, figures = evaluator.evaluate(tmp_path / "top", spec, 2, AGAINST_MLE, **inputs)
    assert figures["pairwise_unjudged"] == 1 and metrics(tmp_path / "top")["win_rate_vs_mle"]["n"] == 3
    assert any("no verdict on 1 of 4 pairs with mle" in line for line in evaluator.reporter.lines)
    silent = [row for row in read_table(tmp_path / "top/pairwise_verdicts").to_dicts() if row["preferred"] is None]
    assert [row["prompt"] for row in silent] == [SUMS[3]]


def test_a_judge_that_never_gives_a_verdict_says_how_to_ask_it(evaluator, tmp_path):
    with endpoint(lambda body: text("Both are fine.")) as served:
        spec = pairwise(served.url)
        evaluator.evaluate(tmp_path / "mle", spec, 1, SELF)
        inputs = {"versus": str(tmp_path / "mle/pairwise_answers")}
        _, figures = evaluator.evaluate(tmp_path / "top", spec, 2, AGAINST_MLE, **inputs)
    assert "annotator: alpaca_eval_gpt4" in figures["pairwise"]
    assert "win_rate_vs_mle" not in metrics(tmp_path / "top")


def test_a_missing_key_leaves_the_metric_out_before_anything_is_generated(evaluator, tmp_path, monkeypatch):
    with endpoint(longer) as served:
        spec = pairwise(served.url)
        evaluator.evaluate(tmp_path / "mle", spec, 1, SELF)
        monkeypatch.delenv("JUDGE_KEY")
        inputs = {"versus": str(tmp_path / "mle/pairwise_answers")}
        made: list = []
        monkeypatch.setattr(generation, "decode", lambda *given: made.append(given))
        _, figures = evaluator.evaluate(tmp_path / "top", spec, 2, AGAINST_MLE, **inputs)
    assert "JUDGE_KEY holds no key" in figures["pairwise"] and not made and not served.requests
