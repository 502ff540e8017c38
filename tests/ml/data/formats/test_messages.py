"""Format `messages`: conversations as they are, splits that rows name, and errors that name file and line."""

import json

import pytest

from tests.support.tiny_datasets import GOOD, by_split, chat, messages_spec, write_lines
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError


def test_rows_name_their_splits(tmp_path):
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
    loaded = load_examples(messages_spec(path, {"train": 11, "test": 10}))
    assert by_split(loaded.examples) == {"train": 10, "test": 10}
    assert loaded.metrics["fewer_rows_than_sizes"] == "train 10 of 11" and "train 10 of 11" in loaded.warnings[0]
    with pytest.raises(InputError, match=r"split 'validation': no row can be drawn for it.*`sizes` of chats"):
        load_examples(messages_spec(path, {"train": 4, "validation": 1}))


def test_a_question_in_two_named_splits_stays_in_the_one_held_out(tmp_path):
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
    assert by_split(load_examples(messages_spec(path, {"train": 2, "test": 1})).examples) == {"train": 1, "test": 1}


def test_keep_system_and_every_turn(tmp_path):
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
        ({"messages": [{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}]}, "'role' is 'bot', none of"),
        (chat("What?", split="holdout"), "split 'holdout' is none of train"),
        (chat("What?", split=["train"]), "is none of train"),
        (chat("What?", split="train"), "line 1: has no 'split'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, reason):
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


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match=r"a\.jsonl: holds no rows"):
        load_examples(messages_spec(tmp_path / "a.jsonl"))
