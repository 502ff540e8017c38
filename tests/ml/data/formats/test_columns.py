"""Merged turns, mapped columns and roles, system text, pairs, and what a format does not read."""

import pytest
from pydantic import ValidationError

from tests.support.conversations import CALL, RESULT, TOOL, dialogue, turn, two_answers
from tests.support.tiny_datasets import chat, parse_row, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.row_keys import FORMAT_COLUMNS
from tokenuq_ml.data.formats import FORMATS
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.row_reader import RowReader, kind_of
from tokenuq_ml.data.sources.records import BrokenRow


def test_consecutive_turns_of_one_role_are_merged_on_demand():
    turns = [
        *(turn("system", "s"), turn("system", "t"), turn("user", "a"), turn("user", "b")),
        *(turn("assistant", "c", reasoning_content="hm"), turn("assistant", "", tool_calls=[CALL]), RESULT, RESULT),
        turn("assistant", "d"),
    ]
    assert parse_row("messages", dialogue(*turns), merge_turns=True).messages == [
        turn("system", "s\n\nt"),
        turn("user", "a\n\nb"),
        turn("assistant", "c", reasoning_content="hm", tool_calls=[CALL]),
        *(RESULT, RESULT, turn("assistant", "d")),
    ]
    differing = dialogue(turn("user", "a"), turn("assistant", "b", weight=0), turn("assistant", "c"))
    with pytest.raises(BrokenRow, match="different weights"):
        parse_row("messages", differing, merge_turns=True)


def test_roles_and_columns_are_mapped():
    row = {"dialog": [{"who": "Kunde", "says": "a"}, {"who": "agent", "says": "b"}], "persona": "s", "split": 7}
    columns = {"messages": "dialog", "role": "who", "content": "says", "system": "persona", "split": None}
    reader = RowReader(
        DatasetSpec(
            name="d",
            format="messages",
            path="d.json",
            sizes={"train": 1},
            columns=columns,
            roles={"Kunde": "user", "agent": "assistant"},
        )
    )
    parsed = reader.parse(row)
    assert parsed.messages == [turn("system", "s"), turn("user", "a"), turn("assistant", "b")]
    assert reader.metrics == {"columns_read": "dialog (1), persona (1)", "columns_not_read": "split (1)"}


def test_a_mapped_column_is_not_read_under_its_own_name():
    row = {"input": "Q", "output": "A"}
    assert parse_row("alpaca", row, columns={"instruction": "input"}).messages == [
        turn("user", "Q"),
        turn("assistant", "A"),
    ]
    with pytest.raises(BrokenRow, match=r"'completion' \(column 'reply'\) is missing"):
        parse_row("prompt_completion", {"prompt": "a", "completion": "b"}, columns={"completion": "reply"})


def test_a_mapping_to_no_column_of_the_format_is_refused():
    with pytest.raises(ValidationError, match=r"'columns': format 'alpaca' reads no column 'promt'.*instruction"):
        DatasetSpec(name="d", format="alpaca", path="d", sizes={"train": 1}, columns={"promt": "q"})


@pytest.mark.parametrize("format", FORMATS)
def test_formats_read_the_columns_that_may_be_mapped(format):
    """The required ones, and no others than `FORMAT_COLUMNS` lists."""
    turns = chat("a")["messages"]
    required = {
        **{"instruction_id_list": ["a"], "kwargs": [{}], "answer": "#### 1", "messages": turns, "conversations": turns},
        **dict.fromkeys(("key", "instruction", "output", "response", "question", "prompt", "completion", "text"), "x"),
    }
    values = {name: value for name, value in required.items() if name in FORMAT_COLUMNS[format]}
    row = Row(values, DatasetSpec(name="d", format=format, path="d", sizes={"train": 1}))
    FORMATS[format].parse(row)
    assert row.read <= set(FORMAT_COLUMNS[format])
    assert row.unread() <= {"prompt"}


def test_a_role_may_be_mapped_to_developer():
    row = dialogue(turn("developer", "s"), *chat("a")["messages"])
    assert parse_row("messages", row, roles={"developer": "developer"}).messages == row["messages"]


# What stands beside the conversation


def test_a_column_of_reasoning_belongs_to_the_answer():
    row = {"prompt": "a", "completion": "b", "thinking": "hm"}
    assert parse_row("prompt_completion", row).messages[1] == turn("assistant", "b", reasoning_content="hm")
    with pytest.raises(BrokenRow, match="different texts"):
        parse_row("prompt_completion", {**row, "reasoning_content": "so"})


def test_tools_and_arguments_reach_the_template():
    bare = TOOL["function"]
    for given in ([TOOL], [bare], '[{"name": "add", "description": "Add."}]'):
        parsed = parse_row("messages", chat("a", tools=given, chat_template_kwargs={"enable_thinking": False}))
        assert parsed.template == {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_row("messages", chat("a", tools="[]", chat_template_kwargs=None)).template == {}
    # In Arrow every object has the keys of all.
    arrow = chat("a", tools=[{**TOOL, "function": {**bare, "strict": None}}])
    assert parse_row("messages", arrow, "arrow").template == {"tools": [TOOL]}
    for wrong, reason in (("[{", "not JSON"), ({"name": "add"}, "wrong type"), ([3], "invalid tool")):
        with pytest.raises(BrokenRow) as caught:
            parse_row("messages", chat("a", tools=wrong))
        assert caught.value.reason == reason


def test_two_system_texts_must_agree():
    own = dialogue(turn("system", "s"), *chat("a")["messages"])
    assert parse_row("messages", {**own, "system": "s"}).messages == own["messages"]
    for contradicting in ({**own, "system": "t"}, chat("a", system="s", system_prompt="t")):
        with pytest.raises(BrokenRow, match="different texts"):
            parse_row("messages", contradicting)


@pytest.mark.parametrize(
    ("format", "row", "messages"),
    [
        ("prompt_completion", {"prompt": "a", "context": "c", "completion": "b"}, ["a\n\nc", "b"]),
        ("alpaca", {"instruction": "a", "context": "c", "output": "b"}, ["a\n\nc", "b"]),
        ("alpaca", {"instruction": "a", "history": chat("x", "y")["messages"], "output": "b"}, ["x", "y", "a", "b"]),
        ("messages", {"messages": '[{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}]'}, ["a", "b"]),
        ("messages", {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, ["a", "b"]),
        ("prompt_completion", {"prompt": "a", "completion": [turn("assistant", "b")]}, ["a", "b"]),
    ],
)
def test_other_shapes_of_the_same_conversation(format, row, messages):
    assert [one["content"] for one in parse_row(format, row).messages] == messages


@pytest.mark.parametrize(
    ("format", "row", "texts", "weights"),
    [
        ("prompt_completion", {"prompt": "a", "chosen": "b", "rejected": "c"}, ["a", "b"], None),
        ("alpaca", {"instruction": "a", "chosen": "b", "rejected": "c"}, ["a", "b"], None),
        (
            "messages",
            {
                "chosen": two_answers({}, {})["messages"],
                "rejected": [*two_answers({}, {})["messages"][:3], turn("gpt", "x")],
            },
            ["a", "b", "c", "d"],
            [0, 0, 0, 1],
        ),
        (
            "prompt_completion",
            {"prompt": "a", "chosen": chat("a", "b")["messages"], "rejected": chat("a", "c")["messages"]},
            ["a", "b"],
            None,
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            ["a", "b"],
            None,
        ),
    ],
)
def test_of_a_pair_the_chosen_answer_is_trained(format, row, texts, weights):
    reader = RowReader(DatasetSpec(name="d", format=format, path="d", sizes={"train": 1}))
    parsed = reader.parse(row)
    assert [one["content"] for one in parsed.messages] == texts and parsed.turn_weights == weights
    assert reader.metrics["preference_pairs_trained_on_chosen"] == 1 and "columns_not_read" not in reader.metrics


def test_a_pair_without_a_question_is_broken():
    with pytest.raises(BrokenRow, match="give it a 'prompt'"):
        parse_row("messages", {"chosen": "b", "rejected": "c"})
    other = {"prompt": "z", "chosen": chat("a", "b")["messages"], "rejected": chat("a", "c")["messages"]}
    with pytest.raises(BrokenRow, match="another prompt"):
        parse_row("prompt_completion", other)


def test_what_is_not_read_is_named_once_with_counts(tmp_path):
    rows = [chat(f"Q{i}", id=f"r{i}", topic="x", images=["a.png"] if i < 2 else None) for i in range(5)]
    for row in rows[:3]:
        row["messages"][0]["time"] = "noon"
    spec = DatasetSpec(name="d", format="messages", path=write_lines(tmp_path / "a.jsonl", rows), sizes={"train": 5})
    loaded = load_examples(spec)
    assert loaded.metrics["columns_not_read"] == "topic (5), messages[].time (3), images (2)"
    assert loaded.metrics["columns_read"] == "id (5), messages (5)"
    (warning,) = loaded.warnings
    assert "images (2)" in warning and "topic" not in warning and "`columns:`" in warning


def test_kinds_of_files():
    assert [kind_of(name) for name in ("a.CSV", "a.tsv.gz", "a.jsonl.zst", "b.json", "c.parquet", "org/set:train")] == [
        *("csv", "csv", "json", "json", "arrow", "arrow"),
    ]


def test_a_missing_answer_in_csv_is_broken_but_a_word_is_not():
    for word in ("nan", "<NA>"):
        with pytest.raises(BrokenRow, match="pandas writes for a missing value"):
            parse_row("alpaca", {"instruction": "a", "output": word}, "csv")
    assert parse_row("alpaca", {"instruction": "a", "output": "None"}, "csv").messages[1]["content"] == "None"
