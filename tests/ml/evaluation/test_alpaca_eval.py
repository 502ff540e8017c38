"""Verdicts in both orders from judges with known preferences, and their parts of the metrics."""

import polars as pl
import pytest

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.alpaca_eval import VERDICT_SCHEMA, alpaca_eval_examples, references, verdicts
from tokenuq_ml.evaluation.answer_cache import AnswerCache
from tokenuq_ml.evaluation.judge import JudgeUnavailable
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, metric_rows
from tokenuq_ml.tables.schemas import TABLES


def examples(count: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [f"alpaca/{index:03d}" for index in range(count)],
            "messages": [
                [{"role": "user", "content": f"Do {index}."}, {"role": "assistant", "content": "as GPT-4 did"}]
                for index in range(count)
            ],
        }
    )


class Rule:
    """A judge by a rule of both outputs: how far the second is preferred, or None."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def compare(self, pairs):
        self.asked += pairs
        return [self.rule(pair.output_1, pair.output_2) for pair in pairs]


def longer(first: str, second: str) -> float:
    return 0.8 if len(second) > len(first) else 0.2


def judged(judge: Rule, responses: list[str], cache: AnswerCache, progress=lambda pairs: None) -> pl.DataFrame:
    return verdicts(references(examples(len(responses))), responses, judge, cache, progress)


def values(frame: pl.DataFrame) -> dict[str, float]:
    rows = metric_rows(alpaca_eval_examples(frame, "alpaca", "ood"), EvaluationSpec(bootstrap=100))
    return {row["metric"]: row["value"] for row in rows.iter_rows(named=True)}


LONG, SHORT, SAME = "a much longer answer than the reference's", "short", "as GPT-4 did"


def test_a_judge_of_content_has_no_position_bias(tmp_path):
    frame = judged(Rule(longer), [LONG, SHORT, LONG, LONG], AnswerCache(tmp_path))
    assert dict(frame.schema) == VERDICT_SCHEMA
    assert {*VERDICT_SCHEMA, "n_tokens"} == set(TABLES["alpaca_eval_verdicts"].columns)
    assert frame["preferred_first"].to_list() == pytest.approx([0.8, 0.2, 0.8, 0.8])
    assert frame["preferred_second"].to_list() == pytest.approx([0.8, 0.2, 0.8, 0.8])
    assert values(frame) == pytest.approx({"win_rate": (3 * 0.8 + 0.2) / 4, "position_bias": 0})


def test_a_judge_that_prefers_the_first_output_always_flips(tmp_path):
    frame = judged(Rule(lambda first, second: 0.0), [LONG, SHORT], AnswerCache(tmp_path))
    assert frame.select("preferred_first", "preferred_second", "preferred").rows() == 2 * [(1.0, 0.0, 0.5)]
    assert values(frame) == {"win_rate": 0.5, "position_bias": 1.0}


def test_the_reference_wins_if_the_judge_prefers_it(tmp_path):
    frame = judged(Rule(lambda first, second: 1.0 if second == SAME else 0.0), [LONG, SHORT], AnswerCache(tmp_path))
    assert values(frame) == {"win_rate": 0.0, "position_bias": 0.0}


def test_equal_outputs_are_a_tie_without_asking_the_judge(tmp_path):
    judge = Rule(lambda first, second: 0.0)
    frame = judged(judge, [SAME, LONG], AnswerCache(tmp_path))
    assert frame["preferred"].to_list() == [0.5, 0.5] and frame["flipped"].to_list() == [False, True]
    assert len(judge.asked) == 2 and all(LONG in pair for pair in judge.asked)


def test_a_pair_without_a_verdict_in_one_order_is_left_out(tmp_path):
    def silent(first: str, second: str) -> float | None:
        return None if first == SHORT else longer(first, second)

    frame = judged(Rule(silent), [LONG, SHORT], AnswerCache(tmp_path))
    assert frame.row(1, named=True) | {"preferred_first": None, "preferred_second": None} == frame.row(1, named=True)
    assert frame["flipped"].to_list() == [False, None]
    made = alpaca_eval_examples(frame, "alpaca", "test")
    assert dict(made.schema) == EXAMPLE_SCHEMA
    assert made.rows() == [
        ("alpaca/000", "alpaca", "test", "win_rate", pytest.approx(0.8), 1.0),
        ("alpaca/000", "alpaca", "test", "position_bias", 0.0, 1.0),
    ]


def test_without_any_verdict_the_judge_is_unavailable(tmp_path):
    with pytest.raises(JudgeUnavailable, match="no answer of the judge says"):
        judged(Rule(lambda first, second: None), [LONG, SHORT], AnswerCache(tmp_path))


def test_verdicts_are_cached_and_missing_ones_are_asked_again(tmp_path):
    responses = [f"{LONG} {index}" for index in range(40)]

    class Leaves(Rule):
        def compare(self, pairs):
            if self.asked:
                raise JudgeUnavailable("gone")
            return super().compare(pairs)

    told = []
    with pytest.raises(JudgeUnavailable, match="gone"):
        judged(Leaves(longer), responses, AnswerCache(tmp_path), told.append)
    assert told == [0, 32]
    again = Rule(lambda first, second: None if first == responses[-1] else longer(first, second))
    frame = judged(again, responses, AnswerCache(tmp_path))
    assert len(again.asked) == 80 - 32 and frame["preferred"].null_count() == 1
    last = Rule(longer)
    assert values(judged(last, responses, AnswerCache(tmp_path))) == pytest.approx(
        {"win_rate": 0.8, "position_bias": 0}
    )
    assert len(last.asked) == 1


@pytest.mark.parametrize("roles, message", [(["user"], "alpaca/000.*format: alpaca_eval"), (None, "no row of split")])
def test_rows_without_instruction_or_output_are_named(roles, message):
    frame = examples(1 if roles else 0)
    if roles:
        frame = frame.with_columns(messages=pl.lit([{"role": role, "content": "x"} for role in roles]))
    with pytest.raises(InputError, match=message):
        references(frame)
