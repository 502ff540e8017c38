"""GSM8K against lm-eval's own evaluation of the same task and documents, with canned outputs."""

import json
from pathlib import Path

import datasets
import lm_eval
import polars as pl
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import gsm8k
from tokenuq_ml.evaluation.gsm8k import ANSWER_SCHEMA, Gsm8k, gsm8k_examples
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA
from tokenuq_ml.tables.schemas import TABLES

NUMBERS = [18, 1200, -3, 7, 2.5, 64]
# What each filter makes of these differs: commas, dollars, a final stop, no mark, a number at the end, nothing.
CANNED = [
    "So it is 18.\n#### 18",
    "#### 1,200",
    "It is $-3.",
    "#### 7.",
    "2.5 it is, and not\n#### 2",
    "I do not know.",
]


def rows(numbers, name: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [f"{name}/{index:03d}" for index in range(len(numbers))],
            "split": name,
            "messages": [
                [
                    {"role": "user", "content": f"What is {number}, item {index} of {name}?"},
                    {"role": "assistant", "content": f"It is said to be {number}.\n#### {number:,}"},
                ]
                for index, number in enumerate(numbers)
            ],
        }
    )


TEST, TRAIN = rows(NUMBERS, "test"), rows(range(30, 40), "train")


class Canned(LM):
    """A model that writes what it is told to, and notes what it was asked."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.asked = outputs, []

    def generate_until(self, requests, **_):
        self.asked = [request.args[0] for request in requests]
        return self.outputs

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return json.dumps(chat_history)

    tokenizer_name, chat_template = "canned", lambda self, *_: "none"

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def lm_evals(num_fewshot: int, chat: bool) -> tuple[Canned, dict]:
    """lm-eval's evaluator on its own task, but for where the documents come from."""

    def documents(frame):
        return datasets.Dataset.from_list([{"question": q["content"], "answer": a["content"]} for q, a in frame])

    held = {"train": documents(TRAIN["messages"]), "test": documents(TEST["messages"])}
    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    task = ConfigurableTask(config={**config, "num_fewshot": num_fewshot, "custom_dataset": lambda **_: held})
    task.set_fewshot_seed(1234)
    model = Canned(CANNED)
    results = evaluate(model, {"gsm8k": task}, apply_chat_template=chat, fewshot_as_multiturn=chat, bootstrap_iters=0)
    return model, results


@pytest.mark.parametrize("num_fewshot, chat", [(0, False), (3, False), (0, True), (3, True)])
def test_prompts_and_scores_agree_with_lm_eval(num_fewshot, chat):
    model, results = lm_evals(num_fewshot, chat)
    task = Gsm8k(TEST, TRAIN, num_fewshot=num_fewshot, chat=chat)
    asked = [json.loads(text) for text in model.asked] if chat else model.asked
    assert task.prompts() == asked
    answers = task.score(CANNED)
    for short, name in (("strict", "strict-match"), ("flexible", "flexible-extract")):
        assert answers[f"{short}_match"].mean() == results["results"]["gsm8k"][f"exact_match,{name}"]
    samples = {
        (sample["doc_id"], sample["filter"]): (sample["filtered_resps"][0], bool(sample["exact_match"]))
        for sample in results["samples"]["gsm8k"]
    }
    for index, row in enumerate(answers.iter_rows(named=True)):
        assert samples[index, "strict-match"] == (row["strict_answer"], row["strict_match"])
        assert samples[index, "flexible-extract"] == (row["flexible_answer"], row["flexible_match"])
    assert answers["strict_match"].to_list() == [True, True, False, True, False, False]
    assert answers["flexible_match"].to_list() == [True, True, True, True, False, False]


def test_few_shot_examples_come_from_train_before_the_question():
    conversations = Gsm8k(TEST, TRAIN, num_fewshot=2, chat=True).prompts()
    for conversation, row in zip(conversations, TEST["messages"], strict=True):
        assert [turn["role"] for turn in conversation] == ["user", "assistant"] * 2 + ["user"]
        assert row[0]["content"] in conversation[-1]["content"]
        assert all("of train?" in turn["content"] for turn in conversation[:-1:2])


def test_answers_have_the_columns_of_the_table_and_give_the_metrics():
    answers = Gsm8k(TEST, TRAIN, num_fewshot=1, chat=True).score(CANNED)
    assert dict(answers.schema) == ANSWER_SCHEMA
    assert {*ANSWER_SCHEMA, "n_tokens"} == set(TABLES["gsm8k_answers"].columns)
    examples = gsm8k_examples(answers, "sums", "test")
    assert dict(examples.schema) == EXAMPLE_SCHEMA
    sums = examples.group_by("metric").agg(pl.col("numerator", "denominator").sum())
    assert {metric: (right, asked) for metric, right, asked in sums.iter_rows()} == {
        "exact_match_strict": (3, 6),
        "exact_match_flexible": (4, 6),
    }
    assert set(examples["split"]) == {"test"}


def test_questions_whose_answers_no_filter_extracts_are_left_out():
    finals = ["$1,000", "3/4", "20%", "5 apples", "1,234.50", "-7", "$.5", "12."]
    examples = TRAIN[: len(finals)].with_columns(
        messages=pl.Series(
            [
                [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"so\n#### {final}"}]
                for i, final in enumerate(finals)
            ]
        )
    )
    task = Gsm8k(examples, TRAIN, num_fewshot=2, chat=True)
    assert task.unscorable == ["train/001", "train/002", "train/003"]
    answers = task.score(["#### 1000", "#### 1234.50", "#### -7", "It is .5", "#### 12"])
    assert answers["example_id"].to_list() == ["train/000", *(f"train/00{i}" for i in range(4, 8))]
    assert answers["target"].to_list() == [
        f"so\n#### {final}" for final in finals if final[:2] not in ("3/", "20", "5 ")
    ]
    assert answers["flexible_match"].all() and answers["strict_match"].sum() == 4
    with pytest.raises(InputError, match=r"no filter of lm-eval extracts.*'3/4' of train/001"):
        Gsm8k(examples[1:4], TRAIN, num_fewshot=0, chat=True)


@pytest.mark.parametrize(
    "examples, shots, message",
    [
        (TEST[:0], TRAIN, "no row of split test or ood.*`sizes`"),
        (TEST, TRAIN[:1], "2 few-shot examples.*has only 1.*fewshot_dataset"),
        (
            TEST.with_columns(messages=pl.lit([{"role": "user", "content": "2?"}])),
            TRAIN,
            "test/000: needs a question and an answer",
        ),
        (
            TEST,
            TRAIN.with_columns(
                messages=pl.lit([{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}])
            ),
            "train/000: its answer must end in `#### number`",
        ),
        (
            TEST.with_columns(messages=pl.lit([{"role": role, "content": "2\n#### 2"} for role in gsm8k.ROLES * 2])),
            TRAIN,
            "test/000: has several questions or answers, and lm-eval asks one",
        ),
    ],
)
def test_bad_documents_are_named(examples, shots, message):
    with pytest.raises(InputError, match=message):
        Gsm8k(examples, shots, num_fewshot=2, chat=True)


def test_the_number_of_responses_must_match():
    with pytest.raises(ValueError, match="1 responses for 6 examples"):
        Gsm8k(TEST, TRAIN, num_fewshot=0, chat=True).score(["18"])


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    gsm8k._load_task.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.task", None)
    with pytest.raises(InputError, match=r"lm_eval.*pip install 'tokenuq\[quickstart\]'"):
        Gsm8k(TEST, TRAIN, num_fewshot=0, chat=True)
    gsm8k._load_task.cache_clear()
