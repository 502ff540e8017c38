"""Rows of other tools that are nearly of a format: read as their author meant, or refused with what to do."""

import json

import pytest

from tests.support.chat_templates import QWEN3
from tests.support.tiny_datasets import chat, messages_spec, parse_row, write_lines
from tests.support.tiny_tokenizer import CHATML
from tests.support.tokenizing import examples_of, tokenize, turns
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow

PAIR = {"prompt": "Q", "completion": "A"}


@pytest.mark.parametrize("kind", ["json", "csv", "arrow"])
@pytest.mark.parametrize(("column", "keys"), [("label", {}), ("kto_tag", {}), ("good", {"columns": {"label": "good"}})])
def test_labels_that_are_words_are_read(kind, column, keys):
    """Before: in JSON and Parquet, rows whose label was the text `false` were trained, with a warning."""
    for value in (False, "false", "False"):
        with pytest.raises(LeftOutRow, match="is false: a rejected answer is not trained"):
            parse_row("prompt_completion", {**PAIR, column: value}, kind, **keys)
    for value in (True, "true", "True", None, "", float("nan")):
        assert parse_row("prompt_completion", {**PAIR, column: value}, kind, **keys).messages == turns("Q", "A")


@pytest.mark.parametrize("kind", ["json", "csv", "arrow"])
def test_numbers_are_labels_where_the_column_can_be_nothing_else(kind):
    """`label: 0` may be a class; `columns: {kto_tag: label}` says that it is none."""
    assert parse_row("prompt_completion", {**PAIR, "label": 0}, kind).messages == turns("Q", "A")
    for row, keys in (
        ({"kto_tag": 0}, {}),
        ({"label": "0"}, {"columns": {"kto_tag": "label"}}),
        ({"kto_tag": 0.0}, {}),
    ):
        with pytest.raises(LeftOutRow, match="is false"):
            parse_row("prompt_completion", PAIR | row, kind, **keys)
    assert parse_row("prompt_completion", {**PAIR, "kto_tag": 1}, kind).messages == turns("Q", "A")
    with pytest.raises(BrokenRow, match="'kto_tag' is 'bad'; must be true or false, or 1 or 0"):
        parse_row("prompt_completion", {**PAIR, "kto_tag": "bad"}, kind)


def test_a_label_that_is_not_read_is_named_with_what_to_do(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{**PAIR, "prompt": f"Q{n}", "label": n % 2} for n in range(4)])
    data = load_examples(DatasetSpec(name="d", format="prompt_completion", path=path, sizes="all"))
    assert any("label (4)" in line and "`columns: {kto_tag: label}`" in line for line in data.warnings)


@pytest.mark.parametrize(
    ("format", "row", "hint"),
    [
        ("messages", {"text": "x"}, "the row has the columns of format 'raw_text': text"),
        ("messages", {"conversations": []}, "the row has the columns of format 'sharegpt': conversations"),
        ("sharegpt", chat("Q"), "the row has the columns of format 'messages': messages"),
        ("messages", PAIR, "the row has the columns of format 'prompt_completion': prompt, completion"),
        ("alpaca", {"question": "Q", "answer": "A"}, "the row has the columns of format 'gsm8k': question, answer"),
        ("sharegpt", {"items": []}, r"the row has the columns items; map them with `columns:` in datasets\.yaml"),
        (
            "prompt_completion",
            {"prompt": "Q", "response": "A", "source": "mpt"},
            r"'completion' is missing; the row has the columns prompt, response, source; map them with `columns:`",
        ),
    ],
)
def test_rows_of_another_format_say_which(format, row, hint):
    """Before: `'messages' must be a list of turns, not empty`, of a row that has none."""
    with pytest.raises(BrokenRow, match=hint) as caught:
        parse_row(format, row)
    assert caught.value.reason == "missing field"


def test_a_null_is_not_taken_for_another_format():
    with pytest.raises(BrokenRow) as caught:
        parse_row("alpaca", {"instruction": "Q", "input": None, "output": None})
    assert str(caught.value) == "'output' is null"


def test_pairs_whose_answers_repeat_the_prompt_are_refused():
    """Before: the prompt was trained as the beginning of the answer."""
    asked = "What is the capital of France?"
    row = {"prompt": asked, "chosen": f"{asked} Paris.", "rejected": f"{asked} Lyon."}
    for format, question in (("prompt_completion", "prompt"), ("messages", "prompt"), ("alpaca", "instruction")):
        with pytest.raises(BrokenRow, match="'chosen' and 'rejected' both begin with the text of the prompt"):
            parse_row(format, {question: asked, "chosen": row["chosen"], "rejected": row["rejected"]})
    for fine in ({**row, "rejected": "Lyon."}, {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi."}):
        assert parse_row("prompt_completion", fine).messages == turns(fine["prompt"], fine["chosen"])


def test_missing_numbers_of_pandas_are_no_weights():
    asked = [{**turn, "weight": float("nan")} for turn in turns("Q", "A")]
    parsed = parse_row("messages", {"messages": asked}, "arrow")
    assert parsed.turn_weights is None and parsed.messages == turns("Q", "A")
    with pytest.raises(BrokenRow, match="'weight' must be a number of at least 0"):
        parse_row("messages", {"messages": asked})


@pytest.mark.parametrize("column", ["train", "masked", "train_detail", "token_weights", "completion_mask"])
def test_columns_that_peers_use_to_mask_are_named(tmp_path, column):
    path = write_lines(tmp_path / "d.jsonl", [chat(f"Q{n}", **{column: [0, 1]}) for n in range(3)])
    data = load_examples(messages_spec(path, "all"))
    assert any("seem to change what a row means" in line and f"{column} (3)" in line for line in data.warnings)


def test_what_the_template_has_no_use_for_is_named(tmp_path):
    """Before: a variable that the template does not know, and the name of a speaker, vanished without a word."""
    rows = [turns(f"Q{n}", "A") for n in range(12)]
    rows[0][0]["name"] = "Ada"
    examples = examples_of(rows, template={"chat_template_kwargs": {"enable_thinking": False, "style": "x"}})
    made = tokenize(tmp_path / "chatml", CHATML, examples)
    words = "enable_thinking (12), name (1), style (12)"
    assert made.result.metrics["not_read_by_template_d"] == words
    assert any(line.endswith(f"the chat template does not read what rows give it: {words}") for line in made.lines)
    made = tokenize(tmp_path / "qwen3", QWEN3, examples[1:])
    assert made.result.metrics["not_read_by_template_d"] == "style (11)"
    plain = tokenize(tmp_path / "plain", CHATML, examples_of([turns(f"Q{n}", "A") for n in range(6)]))
    assert "not_read_by_template_d" not in plain.result.metrics


@pytest.mark.parametrize("kind", ["json", "csv", "arrow"])
def test_contents_that_are_json_text_of_parts_are_their_texts(kind):
    """Before: the JSON itself was trained."""
    parts = json.dumps([{"type": "text", "text": "2+2?"}, {"type": "text", "text": " Say a number."}])
    answer = json.dumps([{"type": "thinking", "thinking": "Add."}, {"type": "text", "text": "4"}])
    given = turns(parts, answer)
    row = {"messages": json.dumps(given) if kind == "csv" else given}
    parsed = parse_row("messages", row, kind)
    assert parsed.messages == [turns("2+2? Say a number.")[0], {**turns("", "4")[1], "reasoning_content": "Add."}]
    picture = json.dumps([{"type": "image_url", "image_url": {"url": "x"}}])
    with pytest.raises(BrokenRow, match="turn 1: 'content' has a part of type 'image_url'; only parts of text are"):
        parse_row("messages", {"messages": turns(picture, "4")}, kind)


@pytest.mark.parametrize(
    "text", ['[{"a": 1}]', '[{"type": "text"', '[{"type": "fruit"}]', '[{"type": "text", "text": "x", "id": 5}]', "[{"]
)
def test_other_json_in_a_content_is_text(text):
    assert parse_row("messages", {"messages": turns(text, text)}).messages == turns(text, text)


@pytest.mark.parametrize("key", ["train", "training", "loss"])
@pytest.mark.parametrize("value", [False, 0, "false", "False"])
def test_flags_of_turns_may_be_words_or_0(key, value):
    """Before: only JSON's false was read, and the answer was trained."""
    given = turns("Q", "A", "Q2", "B")
    given[1][key] = value
    assert parse_row("messages", {"messages": given}).turn_weights == [0, 0, 0, 1]
    given[1][key], given[0][key] = {"false": "true", "False": "True"}.get(value, not value), value
    assert parse_row("messages", {"messages": given}).turn_weights is None


def test_a_loss_that_is_a_number_is_no_flag():
    given = turns("Q", "A")
    given[1]["loss"] = 0.31
    assert parse_row("messages", {"messages": given}).turn_weights is None


def test_turns_in_pythons_notation_are_no_text():
    """Before: pandas' `to_csv` made texts of lists, and these were trained."""
    for row in ({"prompt": str(turns("Q")), "completion": "A"}, {"prompt": "Q", "completion": str(turns("", "A")[1:])}):
        with pytest.raises(BrokenRow, match="turns are written by Python's `str`, which is not JSON: use `json.dumps`"):
            parse_row("prompt_completion", row, "csv")
    pair = {"prompt": "Q", "chosen": str(turns("Q", "A")), "rejected": str(turns("Q", "B"))}
    with pytest.raises(BrokenRow, match=r"Python's `str`"):
        parse_row("prompt_completion", pair, "csv")
    text = "['a', 'b'] and [{'x': 1}]"
    assert parse_row("prompt_completion", {"prompt": text, "completion": text}).messages == turns(text, text)


def test_a_turn_that_names_two_roles_or_texts_is_named(tmp_path):
    rows = [chat(f"Q{n}") for n in range(3)]
    for row in rows:
        row["messages"][0] |= {"from": "gpt", "value": "other"}
        row["messages"][1] |= {"value": row["messages"][1]["content"]}
    data = load_examples(messages_spec(write_lines(tmp_path / "d.jsonl", rows), "all"))
    assert any("messages[].from (3), messages[].value (3)" in line for line in data.warnings)
