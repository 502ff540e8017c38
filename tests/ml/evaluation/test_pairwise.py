"""Prompts as a judge reads them, the other model's outputs, and what each prompt adds to the win rate."""

import polars as pl
import pytest

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import metric_rows
from tokenuq_ml.evaluation.pairwise import asked_prompts, pairwise_examples, tied_examples, with_references


def examples(*conversations: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [f"chat/{number}" for number in range(len(conversations))],
            "messages": [[{"role": role, "content": text} for role, text in turns] for turns in conversations],
        }
    )


ONE = [("user", "Say one."), ("assistant", "One.")]
LONG = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Two?"), ("assistant", "2")]


def test_a_prompt_is_what_comes_before_the_last_answer():
    asked = asked_prompts(examples(ONE, LONG, [("user", "No answer.")]))
    assert asked["prompt"].to_list() == [
        "Say one.",
        "system: Be brief.\n\nuser: Hi.\n\nassistant: Hello.\n\nuser: Two?",
        "No answer.",
    ]
    with pytest.raises(InputError, match="example chat/0: asks nothing"):
        asked_prompts(examples([("text", "Raw.")]))
    with pytest.raises(InputError, match="no row of split test or ood"):
        asked_prompts(examples(ONE).clear())


def test_the_other_models_outputs_are_those_to_the_same_prompts():
    asked = asked_prompts(examples(ONE, LONG))
    answers = asked.with_columns(response=pl.Series(["1", "2"]), n_tokens=pl.Series([1, 1]))
    assert with_references(asked, answers.reverse(), "mle")["reference"].to_list() == ["1", "2"]
    for other in (answers.head(1), answers.with_columns(prompt=pl.lit("Another."))):
        with pytest.raises(InputError, match="mle has answered other prompts"):
            with_references(asked, other, "mle")


def test_a_prompt_without_verdict_is_left_out_and_ties_count_half():
    judged = pl.DataFrame(
        {"example_id": ["a", "b", "c", "d"], "preferred": [1.0, 0.5, None, 0.75], "flipped": [False, True, None, False]}
    )
    rows = metric_rows(pairwise_examples(judged, "chat", "ood", "mle"), EvaluationSpec(bootstrap=50))
    found = {row["metric"]: row for row in rows.iter_rows(named=True)}
    assert found["win_rate_vs_mle"]["value"] == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert found["win_rate_vs_mle"]["n"] == 3 and found["win_rate_vs_mle"]["higher_is_better"]
    assert found["position_bias_vs_mle"]["value"] == pytest.approx(1 / 3)
    assert found["position_bias_vs_mle"]["higher_is_better"] is None
    tied = metric_rows(tied_examples(judged, "chat", "ood", "mle"), EvaluationSpec(bootstrap=50)).row(0, named=True)
    assert (tied["value"], tied["ci_low"], tied["ci_high"], tied["n"]) == (0.5, 0.5, 0.5, 4)
