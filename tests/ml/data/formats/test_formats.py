"""Formats: the conversation of each row, and the reason and detail of rejected rows."""

import json
from typing import get_args

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_datasets import parse_row, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.formats import FORMATS
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.errors import InputError

# alpaca_eval


def alpaca_spec(path, count=2) -> DatasetSpec:
    return DatasetSpec(name="alpaca", format="alpaca_eval", path=str(path), sizes={"ood": count})


def test_alpaca_eval_rows_become_conversations(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps([{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "gpt4"} for i in range(9)])
    )
    examples = load_examples(alpaca_spec(path, 3)).examples
    assert len(examples) == 3 and {e.split for e in examples} == {"ood"}
    for example in examples:
        number = int(example.id.removeprefix("alpaca/"))
        assert example.messages == [
            {"role": "user", "content": f"Do {number}"},
            {"role": "assistant", "content": f"Done {number}"},
        ]
        assert example.source == {"file": "a.json", "row": number + 1, "output_by": "gpt4"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no rows"),
        ('[{"instruction": "x", "outp', "ends in the middle of the record that begins at line 1 (byte 1)"),
        ("{}", "line 1: 'instruction' is missing"),
        ("[]", "holds no rows"),
        ('[{"instruction": "x", "output": "y"}, 5]', "line 1 (row 2): not a JSON object"),
        ('[{"instruction": "x", "output": "y"}, {"instruction": "z"}]', "(row 2): 'output' is missing"),
        ('[{"instruction": "x", "output": "y"},\n{"instruction": "z", "output": ""}]', "line 2: 'output' is empty"),
        ('[{"instruction": null, "output": "y"}]', "line 1: 'instruction' is null"),
        ('[{"instruction": 5, "output": "y"}]', "line 1: 'instruction' is not text"),
        ('[{"instruction": "x", "output": "y"}]', "asks for 2"),
    ],
)
def test_alpaca_eval_names_bad_rows(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_examples(alpaca_spec(path))
    assert "a.json: " in str(caught.value) and reason in str(caught.value)


# ifeval


def ifeval_row(number: int, **more) -> dict:
    return {
        "key": number,
        "prompt": f"Write {number}.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
        **more,
    }


def ifeval_spec(path, count=1) -> DatasetSpec:
    return DatasetSpec(name="ife", format="ifeval", path=str(path), sizes={"ood": count})


def test_ifeval_keeps_what_the_checkers_need(tmp_path):
    rows = [ifeval_row(number, kwargs=[{"num_words": number, "word": "é"}]) for number in range(1000, 1005)]
    examples = load_examples(ifeval_spec(write_lines(tmp_path / "a.jsonl", rows), 5)).examples
    assert [[turn["role"] for turn in e.messages] for e in examples] == [["user"]] * 5
    assert [json.loads(e.row["source"]) for e in examples] == [
        {key: row[key] for key in ("key", "instruction_id_list", "kwargs")} for row in rows
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"kwargs": []}, "lists of one length"),
        ({"instruction_id_list": "x"}, "lists of one length"),
        ({"instruction_id_list": [], "kwargs": []}, "not empty"),
        ({"kwargs": ["x"]}, "'kwargs' objects"),
        ({"instruction_id_list": [5]}, "must hold text"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"kwargs": [{"word": "\ud800"}]}, "is not valid Unicode"),
    ],
)
def test_ifeval_bad_rows_are_named(tmp_path, more, reason):
    path = write_lines(tmp_path / "a.jsonl", [ifeval_row(1), ifeval_row(2, **more)])
    with pytest.raises(InputError, match=r"a\.jsonl: line 2: ") as caught:
        load_examples(ifeval_spec(path))
    assert reason in str(caught.value)


def test_ifeval_names_a_missing_key(tmp_path):
    row = ifeval_row(1)
    del row["key"]
    with pytest.raises(InputError, match=r"line 2: 'key' is missing"):
        load_examples(ifeval_spec(write_lines(tmp_path / "a.jsonl", [ifeval_row(2), row])))


# the others: one row each


def turns(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def said(*pairs) -> dict:
    return {"id": "x_0", "conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}


PROMPT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
COMPLETION = [{"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("format", "row", "messages", "source"),
    [
        ("alpaca", {"instruction": "Add", "input": "2, 3", "output": "5"}, turns("Add\n\n2, 3", "5"), {}),
        ("alpaca", {"instruction": "Add", "input": " ", "output": "5"}, turns("Add", "5"), {}),
        ("alpaca", {"instruction": "Add", "input": None, "output": "5", "text": "all"}, turns("Add", "5"), {}),
        ("alpaca", {"instruction": "Add", "output": " 5\n"}, turns("Add", " 5\n"), {}),
        (
            "dolly",
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"},
            turns("Who?\n\nAnn came.", "Ann"),
            {"category": "qa"},
        ),
        ("dolly", {"instruction": "Who?", "context": "", "response": "Ann"}, turns("Who?", "Ann"), {"category": ""}),
        (
            "gsm8k",
            {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
            turns("2+2?", "2+2=<<2+2=4>>4\n#### 4"),
            {"final": "4"},
        ),
        ("gsm8k", {"question": "?", "answer": "#### -1,234.5\n"}, turns("?", "#### -1,234.5\n"), {"final": "-1,234.5"}),
        (
            "sharegpt",
            said(("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("assistant", "d")),
            [{"role": "system", "content": "s"}, *turns("a", "b", "c", "d")],
            {"id": "x_0"},
        ),
        (
            "sharegpt",
            said(("gpt", "z"), ("human", "a"), ("gpt", "b"), ("human", "c")),
            turns("a", "b"),
            {"id": "x_0", "trimmed": 2},
        ),
        ("prompt_completion", {"prompt": "a", "completion": " b"}, turns("a", " b"), {}),
        ("prompt_completion", {"prompt": PROMPT, "completion": COMPLETION}, [*PROMPT, *COMPLETION], {}),
        (
            "ifeval",
            {"key": 1, "prompt": "p", "instruction_id_list": ["a", "b"], "kwargs": [{"n": 3, "m": None}, None]},
            turns("p"),
            {"key": 1, "instruction_id_list": ["a", "b"], "kwargs": [{"n": 3}, None]},
        ),
    ],
)
def test_a_row_becomes_a_conversation(format, row, messages, source):
    parsed = parse_row(format, row)
    assert (parsed.turn_weights, parsed.template) == (None, {})
    assert parsed.messages == messages and parsed.source == source


@pytest.mark.parametrize(
    ("format", "row", "reason", "detail"),
    [
        ("alpaca", {"instruction": "Add"}, "missing field", "'output' is missing"),
        ("alpaca", {"instruction": "Add", "output": None}, "missing field", "'output' is null"),
        ("alpaca", {"instruction": "Add", "input": 3, "output": "5"}, "wrong type", "'input' is not text"),
        ("alpaca", {"instruction": "Add", "output": ""}, "empty text", "'output' is empty"),
        ("alpaca", {"instruction": "x" * 1_000_001, "output": "5"}, "text too long", "holds 1,000,001 characters"),
        ("dolly", {"instruction": "Who?", "response": "\udc80"}, "invalid Unicode", "'response': is not valid"),
        ("gsm8k", {"question": "2+2?", "answer": "4"}, "no final answer", "'#### <number>'"),
        ("gsm8k", {"question": "2+2?", "answer": "#### 4\nor 5"}, "no final answer", "'answer' does not end"),
        ("sharegpt", {"id": 1}, "missing field", "'conversations' is missing"),
        ("sharegpt", {"conversations": "a"}, "wrong type", "must be a list of turns"),
        ("sharegpt", said(), "no exchange", "no question with an answer"),
        ("sharegpt", said(("gpt", "a")), "no exchange", "no question with an answer"),
        (
            "sharegpt",
            said(("human", "a"), ("human", "b"), ("gpt", "c")),
            "roles out of order",
            "are user, user, assist",
        ),
        ("sharegpt", said(("human", "a"), ("narrator", "b")), "unknown role", "turn 2: 'from' is 'narrator', none of"),
        ("sharegpt", said(("human", "a"), ("gpt", "")), "empty text", "turn 2: 'value' is empty"),
        ("sharegpt", said(("human", "a"), ("gpt", ["b"])), "wrong type", "turn 2: 'value' is not text"),
        ("sharegpt", {"conversations": [["human", "a"]]}, "wrong type", "turn 1: not an object"),
        ("prompt_completion", {"prompt": "a"}, "missing field", "'completion' is missing"),
        ("prompt_completion", {"prompt": PROMPT, "completion": "b"}, "wrong type", "must be a list of turns"),
        ("prompt_completion", {"prompt": COMPLETION, "completion": PROMPT}, "roles out of order", "roles must be"),
    ],
)
def test_a_broken_row_has_a_reason_and_a_detail(format, row, reason, detail):
    with pytest.raises(BrokenRow) as caught:
        parse_row(format, row)
    assert caught.value.reason == reason and detail in str(caught.value)


def test_trimmed_conversations_are_counted(tmp_path):
    rows = [said(("gpt", "z"), ("human", "a"), ("gpt", "b")), said(("human", "c"), ("gpt", "d"))]
    spec = DatasetSpec(name="s", format="sharegpt", path=write_lines(tmp_path / "a.json", rows), sizes={"train": 2})
    assert load_examples(spec).metrics["conversations_trimmed"] == 1


def test_every_format_is_implemented_and_documented():
    allowed = set(get_args(DatasetSpec.model_fields["format"].annotation))
    assert allowed == {*FORMATS, "reasoning_gym", "synthetic_language", "mix"}
    page = (ROOT / "docs" / "data.md").read_text()
    assert all(f"| `{name}` |" in page for name in allowed)
