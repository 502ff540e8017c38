"""Formats: what each makes of its rows, and which rows it refuses, by kind and in words."""

import json
from typing import get_args

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.formats import FORMATS
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.errors import InputError

SIZES = {"train": 6, "validation": 2, "test": 4}
GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}


def write_lines(path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str = "Yes.", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def messages_spec(path, sizes=None, **more) -> DatasetSpec:
    return DatasetSpec(name="chats", format="messages", path=str(path), sizes=sizes or {"train": 1}, **more)


def by_split(examples) -> dict[str, int]:
    counts = {}
    for example in examples:
        counts[example.split] = counts.get(example.split, 0) + 1
    return counts


# messages


def test_messages_rows_name_their_splits(tmp_path):
    rows = [chat(f"Q{i}", split=["train", "test", "ood"][i % 3], id=f"row-{i}") for i in range(30)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    examples = load_examples(messages_spec(path, {"train": 4, "test": 10})).examples
    assert by_split(examples) == {"train": 4, "test": 10}
    assert all(
        rows[e.source["line"] - 1]["split"] == e.split and e.source["id"] == rows[e.source["line"] - 1]["id"]
        for e in examples
    )
    drawn = [e.source["line"] for e in examples if e.split == "train"]
    assert drawn != [1, 4, 7, 10], "the first rows, not the first of a shuffle"
    with pytest.raises(InputError, match=r"split 'train': holds 10 distinct questions.*asks for 11"):
        load_examples(messages_spec(path, {"train": 11}))


def test_messages_a_question_in_two_named_splits_stays_in_the_one_held_out(tmp_path):
    rows = [("A", "train"), ("B", "test"), (" a", "test"), ("C", "train"), ("b", "validation"), ("D", "validation")]
    path = write_lines(tmp_path / "a.jsonl", [chat(question, split=split) for question, split in rows])
    loaded = load_examples(messages_spec(path, {"train": 1, "validation": 1, "test": 2}))
    assert {(e.source["line"], e.split) for e in loaded.examples} == {
        (4, "train"),
        (6, "validation"),
        (2, "test"),
        (3, "test"),
    }
    assert loaded.metrics["questions_in_two_splits"] == 2
    assert [(row["line"], row["reason"]) for row in loaded.rejected.rows()] == [
        (1, "in two splits"),
        (5, "in two splits"),
    ]
    with pytest.raises(InputError, match=r"split 'train': holds 1 distinct questions.*asks for 2"):
        load_examples(messages_spec(path, {"train": 2, "test": 1}))


def test_messages_keep_system_and_every_turn(tmp_path):
    turns = [
        {"role": role, "content": f"{role} é {i}"}
        for i, role in enumerate(["system", "user", "assistant", "user", "assistant"])
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + json.dumps({"messages": turns}).encode() + b"\r\n\n")
    (example,) = load_examples(messages_spec(path)).examples
    assert example.messages == turns and example.id == "chats/000002" and example.question == "user é 1"
    assert json.loads(example.row["source"])["line"] == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "not JSON"),
        ('{"messages": ' + "[" * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"text": "hi"}, "'messages' must be a list"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["hi"]}, "turn 1: not an object"),
        ({"messages": [{"role": "user"}]}, "turn 1: 'content' is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "turn 1: 'content' is not text"),
        ({"messages": [{"role": 5, "content": "x"}]}, "turn 1: 'role' is not text"),
        (chat("Why?", "  \n"), "turn 2: 'content' is empty"),
        (chat("Why\ud800?"), "turn 1: 'content': is not valid Unicode"),
        (chat("What?", id="\udfff"), "is not valid Unicode"),
        ({"messages": GOOD["messages"][:1]}, "roles must be"),
        ({"messages": GOOD["messages"][::-1]}, "roles must be"),
        ({"messages": GOOD["messages"] + GOOD["messages"][:1]}, "roles must be"),
        ({"messages": [{"role": "system", "content": "x"}]}, "roles must be"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}]}, "roles must be"),
        (chat("What?", split="dev"), "split 'dev' is none of train"),
        (chat("What?", split=["train"]), "is none of train"),
        (chat("What?", split="train"), "line 1: has no 'split'"),
    ],
)
def test_messages_bad_rows_are_named(tmp_path, row, reason):
    path = write_lines(tmp_path / "a.jsonl", [GOOD, "", row])
    with pytest.raises(InputError) as caught:
        load_examples(messages_spec(path))
    message = str(caught.value)
    assert reason in message and "a.jsonl: line " in message and "\n" not in message
    assert reason.startswith("line 1") or "line 3" in message


def test_broken_bytes_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(chat("Caf@")).encode().replace(b"@", b"\xe9") + b"\n")
    with pytest.raises(InputError, match=r"line 1: turn 1: 'content': is not valid Unicode"):
        load_examples(messages_spec(path))


def test_empty_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match=r"a\.jsonl: holds no rows"):
        load_examples(messages_spec(tmp_path / "a.jsonl"))


# alpaca_eval


def alpaca_spec(path, count=2) -> DatasetSpec:
    return DatasetSpec(name="alpaca", format="alpaca_eval", path=str(path), sizes={"ood": count})


def test_alpaca_eval(tmp_path):
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
def test_alpaca_eval_bad_files(tmp_path, text, reason):
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


def test_ifeval_missing_key(tmp_path):
    row = ifeval_row(1)
    del row["key"]
    with pytest.raises(InputError, match=r"line 1: 'key' is missing"):
        load_examples(ifeval_spec(write_lines(tmp_path / "a.jsonl", [row])))


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
    parsed = FORMATS[format].parse(row)
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
        ("sharegpt", {"conversations": "a"}, "wrong type", "'conversations' is not a list"),
        ("sharegpt", said(), "no exchange", "no question with an answer"),
        ("sharegpt", said(("gpt", "a")), "no exchange", "no question with an answer"),
        (
            "sharegpt",
            said(("human", "a"), ("human", "b"), ("gpt", "c")),
            "roles out of order",
            "are user, user, assist",
        ),
        ("sharegpt", said(("human", "a"), ("tool", "b")), "unknown role", "turn 2: 'from' is 'tool', none of human"),
        ("sharegpt", said(("human", "a"), ("gpt", "")), "empty text", "turn 2: 'value' is empty"),
        ("sharegpt", said(("human", "a"), ("gpt", ["b"])), "wrong type", "turn 2: 'value' is not text"),
        ("sharegpt", {"conversations": [["human", "a"]]}, "wrong type", "turn 1: not an object"),
        ("prompt_completion", {"prompt": "a"}, "missing field", "'completion' is missing"),
        ("prompt_completion", {"prompt": PROMPT, "completion": "b"}, "wrong type", "'completion' must be a list"),
        ("prompt_completion", {"prompt": COMPLETION, "completion": PROMPT}, "roles out of order", "roles must be"),
    ],
)
def test_a_broken_row_is_of_a_kind(format, row, reason, detail):
    with pytest.raises(BrokenRow) as caught:
        FORMATS[format].parse(row)
    assert caught.value.reason == reason and detail in str(caught.value)


def test_trimmed_conversations_are_counted(tmp_path):
    rows = [said(("gpt", "z"), ("human", "a"), ("gpt", "b")), said(("human", "c"), ("gpt", "d"))]
    spec = DatasetSpec(name="s", format="sharegpt", path=write_lines(tmp_path / "a.json", rows), sizes={"train": 2})
    assert load_examples(spec).metrics["conversations_trimmed"] == 1


def test_every_format_of_the_configuration_is_there_and_in_the_docs():
    allowed = set(get_args(DatasetSpec.model_fields["format"].annotation))
    assert allowed == {*FORMATS, "reasoning_gym"}
    page = (ROOT / "docs" / "data.md").read_text()
    assert all(f"| `{name}` |" in page for name in allowed)
