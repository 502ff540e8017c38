"""Weights, question and tools of turns in rows of every format."""

import math

import pytest

from tests.support.conversations import CALL, RESULT, dialogue, turn, two_answers
from tests.support.tiny_datasets import chat, parse_row
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow

# Weights


@pytest.mark.parametrize(
    ("row", "keys", "weights"),
    [
        (two_answers({}, {}), {}, None),
        (two_answers({"train": True}, {"weight": 1}), {}, None),
        (two_answers({"train": False}, {}), {}, [0, 0, 0, 1]),
        (two_answers({"weight": 0}, {"weight": 0.5}), {}, [0, 0, 0, 0.5]),
        (two_answers({"loss": False}, {"weight": 2, "train": True}), {}, [0, 0, 0, 2]),
        (two_answers({"weight": 3, "training": False}, {}), {}, [0, 0, 0, 1]),
        (two_answers({}, {}), {"train_on": "last"}, [0, 0, 0, 1]),
        (two_answers({}, {"weight": 0.5}), {"train_on": "last"}, [0, 0, 0, 0.5]),
        (two_answers({"graded": 0}, {}), {"columns": {"weight": "graded"}}, [0, 0, 0, 1]),
        (two_answers({"learn": False}, {}), {"columns": {"train": "learn"}}, [0, 0, 0, 1]),
        # A number is a loss that someone recorded, not a mark.
        (two_answers({"loss": 0.0}, {}), {}, None),
    ],
)
def test_turns_state_their_weights(row, keys, weights):
    parsed = parse_row("messages", row, **keys)
    assert parsed.turn_weights == weights
    assert all(turn.keys() == {"role", "content"} for turn in parsed.messages)


@pytest.mark.parametrize(
    ("row", "keys", "error", "reason", "detail"),
    [
        (two_answers({"weight": -1}, {}), {}, BrokenRow, "invalid weight", "turn 2: 'weight' must be a number"),
        (two_answers({"weight": math.nan}, {}), {}, BrokenRow, "invalid weight", "turn 2"),
        (two_answers({"weight": "high"}, {}), {}, BrokenRow, "invalid weight", "turn 2"),
        (two_answers({"weight": True}, {}), {}, BrokenRow, "invalid weight", "turn 2"),
        (
            dialogue(turn("user", "a", train=True), turn("assistant", "b")),
            {},
            BrokenRow,
            "invalid weight",
            "turn 1: a turn of role 'user' is marked for training",
        ),
        (two_answers({"train": False}, {"weight": 0}), {}, LeftOutRow, "nothing trained", "every answer has weight 0"),
        (two_answers({}, {"weight": 0}), {"train_on": "last"}, LeftOutRow, "nothing trained", "every answer"),
        (chat("a", label=False), {}, LeftOutRow, "label false", "'label' is false"),
        (chat("a", kto_tag=False), {}, LeftOutRow, "label false", "'kto_tag' is false"),
        (chat("a", ok=False), {"columns": {"label": "ok"}}, LeftOutRow, "label false", "(column 'ok')"),
    ],
)
def test_rows_that_train_nothing_or_state_nonsense(row, keys, error, reason, detail):
    with pytest.raises(BrokenRow) as caught:
        parse_row("messages", row, **keys)
    assert type(caught.value) is error and caught.value.reason == reason and detail in str(caught.value)


@pytest.mark.parametrize(
    ("format", "row", "keys", "question"),
    [
        ("messages", two_answers({}, {}), {}, "a"),
        ("messages", two_answers({"train": False}, {}), {}, "a c"),
        ("messages", two_answers({}, {"train": False}), {}, "a"),
        ("messages", two_answers({}, {}), {"train_on": "last"}, "a c"),
        ("alpaca", {"instruction": "C", "history": [["A", "b"]], "output": "d", "system": "s"}, {}, "a c"),
        (
            "prompt_completion",
            {"prompt": chat("a")["messages"] + [turn("user", "c")], "completion": [turn("gpt", "d")]},
            {},
            "a c",
        ),
    ],
)
def test_turns_before_the_question_do_not_make_rows_repeats(format, row, keys, question):
    parsed = parse_row(format, row, **keys)
    assert Example("d/0", "", parsed.messages, parsed.source).question == question


# Roles and turns


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (
            [turn("developer", "s"), turn("user", "a"), turn("assistant", "b")],
            [turn("system", "s"), turn("user", "a"), turn("assistant", "b")],
        ),
        (
            [turn("user", "a"), turn("assistant", None, tool_calls=[CALL]), RESULT, RESULT, turn("assistant", "b")],
            [turn("user", "a"), turn("assistant", "", tool_calls=[CALL]), RESULT, RESULT, turn("assistant", "b")],
        ),
        (
            [
                turn("user", "a"),
                turn("assistant", "", function_call={"name": "add", "arguments": '{"a": 1}'}),
                turn("function", "", name="add"),
                turn("assistant", "b"),
            ],
            [
                turn("user", "a"),
                turn("assistant", "", tool_calls=[CALL]),
                turn("tool", "", name="add"),
                turn("assistant", "b"),
            ],
        ),
        (
            [
                turn("user", "a"),
                turn("assistant", "", tool_calls=[{"id": "c1", **CALL}]),
                {**RESULT, "tool_call_id": "c1"},
            ]
            + [turn("assistant", "b")],
            [
                turn("user", "a"),
                turn("assistant", "", tool_calls=[{"id": "c1", **CALL}]),
                {**RESULT, "tool_call_id": "c1"},
            ]
            + [turn("assistant", "b")],
        ),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "c", "image": None}],
                },
            ],
            [turn("user", "a b"), turn("assistant", "c", reasoning_content="hm")],
        ),
        (
            [turn("user", "a"), turn("assistant", "b", reasoning_content="hm", thinking="hm", name=None)],
            [turn("user", "a"), turn("assistant", "b", reasoning_content="hm")],
        ),
    ],
)
def test_turns_of_other_tools_become_those_that_templates_read(turns, expected):
    assert parse_row("messages", dialogue(*turns)).messages == expected


def test_sharegpt_turns_of_tools():
    said = [
        ("human", "a"),
        ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
        ("observation", "3"),
        ("gpt", "b"),
    ]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}
    expected = [turn("user", "a"), turn("assistant", "", tool_calls=[CALL]), RESULT, turn("assistant", "b")]
    assert parse_row("sharegpt", row).messages == expected
    # The two shapes of a turn are the same wherever they stand.
    assert parse_row("sharegpt", {"conversations": chat("a")["messages"]}).messages == chat("a")["messages"]


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, turn("assistant", "b")],
            "not text",
            "turn 1: 'content' has a part of type 'image_url'",
        ),
        ([turn("user", "a"), turn("assistant", "", tool_calls=[{"name": 3}])], "invalid tool call", "turn 2: a tool"),
        ([turn("user", "a", tool_calls=[CALL]), turn("assistant", "b")], "invalid tool call", "turn 1: only turns of"),
        (
            [turn("user", "a"), turn("function_call", "add(1)")],
            "not JSON",
            "turn 2: a function_call is text that is not",
        ),
        (
            [turn("user", "a"), turn("assistant", "", tool_calls=[{"name": "f", "arguments": "{"}])],
            "not JSON",
            "turn 2: 'arguments' of a tool call",
        ),
        ([turn("user", "a"), RESULT, turn("assistant", "b")], "roles out of order", "are user, tool, assistant"),
        ([turn("user", "a"), turn("assistant", "b"), RESULT], "roles out of order", "ending with the assistant"),
        ([turn("user", "a"), turn("user", "b"), turn("assistant", "c")], "roles out of order", "`merge_turns: true`"),
        ([turn("user", "a"), turn("narrator", "b")], "unknown role", "'role' is 'narrator', none of user, human"),
    ],
)
def test_broken_turns_are_named(turns, reason, detail):
    with pytest.raises(BrokenRow) as caught:
        parse_row("messages", dialogue(*turns))
    assert caught.value.reason == reason and detail in str(caught.value)
