"""Datasets: the same examples everywhere, no question in two splits, and bad rows named by file and line."""

import json
import random
import sys

import polars as pl
import pytest

from tests.support.tiny_datasets import GOOD, SIZES, by_split, chat, gym_spec, messages_spec, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples, why_unavailable
from tokenuq_ml.errors import InputError

# drawing


def test_drawn_rows_are_the_first_of_a_seeded_shuffle(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat(f"Q{i}") for i in range(1, 41)])
    examples = load_examples(messages_spec(path, SIZES)).examples
    order = list(range(40))
    random.Random("chats|0").shuffle(order)
    expected = {
        order[i] + 1: split for i, split in enumerate(split for split, size in SIZES.items() for _ in range(size))
    }
    assert {e.source["line"]: e.split for e in examples} == expected
    assert [e.id for e in examples] == sorted(e.id for e in examples)
    assert all(
        e.id == f"chats/{e.source['line']:06d}" and e.messages[0]["content"] == f"Q{e.source['line']}" for e in examples
    )
    assert load_examples(messages_spec(path, SIZES, seed=1)).examples != examples


def test_a_question_twice_in_a_file_is_drawn_once(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat(q) for q in ("Is it?", "is  IT? ", "Why?", "Who?", "WHY?\n")])
    loaded = load_examples(messages_spec(path, {"train": 1, "validation": 1, "test": 1}))
    assert loaded.metrics["duplicate_questions_dropped"] == 2
    assert [e.source["line"] for e in loaded.examples] == [1, 3, 4]


def test_too_few_rows_are_reported_with_both_numbers(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat("A"), chat("B"), chat("a")])
    with pytest.raises(InputError, match=r"a\.jsonl: holds 2 distinct questions.*asks for 12"):
        load_examples(messages_spec(path, SIZES))


# locating


def package_spec(package: str, file: str = "data/rows.jsonl", **more) -> DatasetSpec:
    return DatasetSpec(name="packed", format="messages", package=package, file=file, sizes={"train": 1}, **more)


def make_package(root, monkeypatch):
    inner = root / "packed_rows" / "inner" / "data"
    inner.mkdir(parents=True)
    for folder in (root / "packed_rows", root / "packed_rows" / "inner"):
        (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    write_lines(inner / "rows.jsonl", [GOOD])
    monkeypatch.syspath_prepend(str(root))


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch)
    for package, file in (("packed_rows", "inner/data/rows.jsonl"), ("packed_rows.inner", "data/rows.jsonl")):
        (example,) = load_examples(package_spec(package, file)).examples
        assert example.messages == GOOD["messages"]
    assert "packed_rows" not in sys.modules


def test_a_missing_package_or_file_says_what_to_do(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"packed: .*no_such_rows.*pip install --no-deps some-rows==1\.0"):
        load_examples(package_spec("no_such_rows.inner", requirement="some-rows==1.0"))
    with pytest.raises(InputError, match=r"pip install --no-deps no_such_rows$"):
        load_examples(package_spec("no_such_rows"))
    with pytest.raises(InputError, match=r"packed_rows has no such file; correct `file:` of packed"):
        load_examples(package_spec("packed_rows", "nothing.jsonl"))
    with pytest.raises(InputError, match=r"nothing\.jsonl: no such file; correct `path:` of chats"):
        load_examples(messages_spec(tmp_path / "nothing.jsonl"))


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(InputError, match=r"chats: the environment variable TOKENUQ_NOWHERE is not set; set it to"):
        load_examples(messages_spec("${TOKENUQ_NOWHERE}/a.jsonl"))


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    write_lines(tmp_path / "b.jsonl", [chat("B1"), chat("B2")])
    write_lines(tmp_path / "a.jsonl", ["", chat("A1"), chat("A2"), ""])
    (tmp_path / "notes.txt").write_text("none of it")
    examples = load_examples(messages_spec(tmp_path, {"train": 4})).examples
    assert [(e.id, e.question, e.source["file"], e.source["line"]) for e in examples] == [
        ("chats/000002", "a1", "a.jsonl", 2),
        ("chats/000003", "a2", "a.jsonl", 3),
        ("chats/000004", "b1", "b.jsonl", 1),
        ("chats/000005", "b2", "b.jsonl", 2),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no data file"):
        load_examples(messages_spec(tmp_path / "empty"))


def parts_spec(path, **more) -> DatasetSpec:
    drawn_from = {"train": "train", "validation": "train", "test": "test"}
    return DatasetSpec(name="gsm", format="gsm8k", path=str(path), sizes=SIZES, **{"drawn_from": drawn_from, **more})


def test_splits_are_drawn_from_the_files_that_are_named_for_them(tmp_path):
    for name, count in (("my_train", 20), ("my-test.v1", 10), ("trainer", 5)):
        rows = [{"question": f"{name} {i}", "answer": f"So.\n#### {i}"} for i in range(count)]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    loaded = load_examples(parts_spec(tmp_path))
    assert by_split(loaded.examples) == SIZES and loaded.metrics["rows_read"] == 30
    for example in loaded.examples:
        part = "test" if example.split == "test" else "train"
        assert example.id == f"gsm/{part}/{example.source['row'] - 1:06d}" and part in example.source["file"]
    with pytest.raises(InputError, match=r"contains the word 'dev'.*files are my-test.v1.jsonl, my_train"):
        load_examples(parts_spec(tmp_path, drawn_from={"train": "train", "validation": "dev", "test": "test"}))
    with pytest.raises(InputError, match=r"name the folder, or remove"):
        load_examples(parts_spec(tmp_path / "my_train.jsonl"))


# broken rows


def alpaca_rows(count: int, broken: dict[int, dict] | None = None) -> list[dict]:
    return [
        {"instruction": f"Do {i}", "input": "", "output": f"Done {i}", **(broken or {}).get(i, {})}
        for i in range(count)
    ]


def test_broken_rows_are_counted_listed_and_not_used(tmp_path):
    broken = {
        3: {"output": " "},
        50: {"output": 5},
        70: {"instruction": "\ud800"},
        71: {"output": ""},
        90: {"output": "x" * 10_000_000},
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(alpaca_rows(500, broken), indent=0))
    spec = DatasetSpec(name="a", format="alpaca", path=str(path), sizes={"train": 495})
    loaded = load_examples(spec)
    assert {e.source["row"] - 1 for e in loaded.examples} == set(range(500)) - set(broken)
    metrics = loaded.metrics
    assert (metrics["rows_read"], metrics["rows_broken"], metrics["broken_empty_text"]) == (500, 5, 2)
    assert (metrics["broken_wrong_type"], metrics["broken_invalid_unicode"], metrics["broken_text_too_long"]) == (
        1,
        1,
        1,
    )
    listed = list(loaded.rejected.rows())
    assert [row["row"] - 1 for row in listed] == list(broken)
    # Each record is five lines, after the one that opens the list.
    assert all(row["line"] == 2 + 5 * (row["row"] - 1) and row["file"] == "a.json" for row in listed)
    assert metrics["left_out"].splitlines()[1] == "a.json: line 252 (row 51): wrong type: 'output' is not text but int"
    assert max(map(len, metrics["left_out"].splitlines())) < 200


def test_too_many_broken_rows_fail_with_counts_and_the_first_rows(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca_rows(200, {i: {"output": ""} for i in (5, 9, 10)}))
    spec = DatasetSpec(name="a", format="alpaca", path=path, sizes={"train": 2})
    with pytest.raises(InputError) as caught:
        load_examples(spec)
    said = str(caught.value)
    assert "3 of 200 rows are broken (3 empty text), more than the allowed share of 0.01" in said
    assert "a.jsonl: line 6: 'output' is empty" in said and "`max_broken_share:` of a" in said and "\n" not in said
    assert load_examples(spec.model_copy(update={"max_broken_share": 0.015})).metrics["rows_broken"] == 3


def test_a_truncated_file_fails_or_keeps_its_complete_records(tmp_path):
    path = tmp_path / "a.json"
    text = json.dumps(alpaca_rows(30), indent=0)
    path.write_text(text[: text.index("Do 20")])
    spec = DatasetSpec(name="a", format="alpaca", path=str(path), sizes={"train": 20})
    with pytest.raises(
        InputError, match=r"a\.json: ends in .* begins at line 102 \(byte [\d,]+\); the 20 before it are.*on_trunc"
    ):
        load_examples(spec)
    loaded = load_examples(spec.model_copy(update={"on_truncated": "keep"}))
    assert len(loaded.examples) == 20 and loaded.metrics["truncated"].startswith("a.json ends in the middle")
    path.write_text("[")
    with pytest.raises(InputError, match="holds no rows"):
        load_examples(spec.model_copy(update={"on_truncated": "keep"}))


def test_repeated_questions_and_conversations_are_listed(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [chat("Why?"), chat("Who?"), chat("why?"), chat("Who?"), chat("Who?", "No.")]
    )
    loaded = load_examples(messages_spec(path, {"train": 2}))
    metrics = loaded.metrics
    assert (metrics["duplicate_questions_dropped"], metrics["duplicate_conversations"], metrics["rows_broken"]) == (
        3,
        1,
        0,
    )
    assert metrics["left_out"].splitlines() == [
        "a.jsonl: line 3: repeated question: the same question as a.jsonl: line 1",
        "a.jsonl: line 4: repeated conversation: the same conversation as a.jsonl: line 2",
        "a.jsonl: line 5: repeated question: the same question as a.jsonl: line 2",
    ]


def test_only_the_metrics_cut_a_long_list_of_rejected_rows(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat("Why?")] * 70)
    loaded = load_examples(messages_spec(path))
    assert len(list(loaded.rejected.rows())) == 69
    lines = loaded.metrics["left_out"].splitlines()
    assert len(lines) == 51 and lines[-1] == "and 19 more: see the table rejected_rows"


def test_progress_is_reported_while_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenuq_ml.data.load.PROGRESS_ROWS", 2)
    told = []
    path = write_lines(tmp_path / "a.jsonl", [chat(f"Q{i}") for i in range(5)])
    load_examples(messages_spec(path), tmp_path, told.append)
    assert told == ["chats: 2 rows read, 0 of them broken", "chats: 4 rows read, 0 of them broken"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_every_container_holds_the_same_rows(tmp_path, suffix):
    """The same ids, texts and draws, whatever file they come in."""
    rows = alpaca_rows(40, {7: {"output": ""}})
    write = {
        "json": lambda path: path.write_text(json.dumps(rows)),
        "jsonl": lambda path: write_lines(path, rows),
        "csv": lambda path: pl.DataFrame(rows).write_csv(path),
        "parquet": lambda path: pl.DataFrame(rows).write_parquet(path, row_group_size=7),
        "arrow": lambda path: pl.DataFrame(rows).write_ipc(path),
    }
    write[suffix](tmp_path / f"a.{suffix}")
    spec = DatasetSpec(
        name="a",
        format="alpaca",
        path=str(tmp_path / f"a.{suffix}"),
        sizes={"train": 9, "test": 9},
        max_broken_share=0.1,
    )
    examples = load_examples(spec).examples
    order = [i for i in range(40) if i != 7]
    random.Random("a|0").shuffle(order)
    assert {(e.id, e.split) for e in examples} == {
        (f"a/{i:06d}", "train" if n < 9 else "test") for n, i in enumerate(order[:18])
    }
    assert all(e.question == f"do {int(e.id[2:])}" for e in examples)


def test_csv_holds_lists_as_json_text_only(tmp_path):
    (tmp_path / "a.csv").write_text("messages\nx\n")
    with pytest.raises(InputError, match=r"a\.csv: line 2 \(row 1\): 'messages' is text; it must be a list"):
        load_examples(messages_spec(tmp_path / "a.csv"))


def test_availability_is_checked_without_reading(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", ["not read"])
    assert why_unavailable(messages_spec(path)) is None and why_unavailable(gym_spec()) is None
    assert "no such file" in why_unavailable(messages_spec(tmp_path / "b.jsonl"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "reasoning-gym is not installed" in why_unavailable(gym_spec())
