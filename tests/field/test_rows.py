"""Rows that users of other tools have: each is trained as its author meant, or a sentence says why not.

Each test rebuilds the input of one public report.
"""

import json

import pytest

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import LoadedExamples, load_examples


def load(tmp_path, format: str, rows, file: str = "data.json", **keys) -> LoadedExamples:
    """Load `rows`, a list of objects or the text of a file, all into train unless `sizes` says otherwise."""
    path = tmp_path / file
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    sizes = keys.pop("sizes", {"train": 10})
    return load_examples(DatasetSpec(name="d", format=format, path=str(path), sizes=sizes, **keys))


def said(*texts: str, system: str | None = None) -> list[dict]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_alpaca_rows_have_system_text_and_earlier_turns(tmp_path):
    rows = [
        {
            "instruction": f"And in winter {i}?",
            "input": "",
            "output": f"Cold {i}.",
            "system": "You are a weather desk.",
            "history": [["Is it warm in summer?", "Yes, warm."]],
        }
        for i in range(10)
    ]
    loaded = load(tmp_path, "alpaca", rows)
    assert [example.messages for example in loaded.examples] == [
        said("Is it warm in summer?", "Yes, warm.", f"And in winter {i}?", f"Cold {i}.", system=rows[0]["system"])
        for i in range(10)
    ]
    assert "columns_not_read" not in loaded.metrics and not loaded.warnings


def test_sharegpt_rows_have_system_text_and_tools_beside_the_conversation(tmp_path):
    rows = [
        {
            "conversations": [{"from": "human", "value": f"Price {i}?"}, {"from": "gpt", "value": f"{i} coins"}],
            "system": "Answer as a pirate.",
            "tools": '[{"name":"price"}]',
        }
        for i in range(10)
    ]
    loaded = load(tmp_path, "sharegpt", rows)
    assert loaded.examples[3].messages == said("Price 3?", "3 coins", system="Answer as a pirate.")
    tools = [{"type": "function", "function": {"name": "price"}}]
    assert [example.template for example in loaded.examples] == [{"tools": tools}] * 10
    assert json.loads(loaded.examples[0].row["template"]) == {"tools": tools}


@pytest.mark.parametrize("format", ["sharegpt", "messages"])
def test_empty_system_turns_are_left_out(tmp_path, format):
    key, role, content = {
        "sharegpt": ("conversations", "from", "value"),
        "messages": ("messages", "role", "content"),
    }[format]
    speakers = {"sharegpt": ("system", "human", "gpt"), "messages": ("system", "user", "assistant")}[format]
    rows = [
        {key: [{role: who, content: text} for who, text in zip(speakers, ("", f"Q{i}", "A"), strict=True)]}
        for i in range(10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    loaded = load(tmp_path, format, text, "data.jsonl")
    assert [example.messages for example in loaded.examples] == [said(f"Q{i}", "A") for i in range(10)]
    assert loaded.metrics["empty_system_turns"] == 10 and loaded.metrics["rows_broken"] == 0


def test_words_for_missing_values_in_optional_cells_of_csv_are_empty(tmp_path):
    text = "instruction,input,output\n" + "".join(f"I{i},nan,A{i}\n" for i in range(10))
    loaded = load(tmp_path, "alpaca", text, "data.csv")
    assert [example.messages for example in loaded.examples] == [said(f"I{i}", f"A{i}") for i in range(10)]
    assert loaded.metrics["cells_read_as_empty"] == "input 'nan' (10)"
    assert "input 'nan' (10)" in loaded.warnings[0] and "na_rep=''" in loaded.warnings[0]
    # In JSON the word is text.
    in_json = load(tmp_path, "alpaca", [{"instruction": f"I{i}", "input": "nan", "output": "A"} for i in range(10)])
    assert in_json.examples[0].messages == said("I0\n\nnan", "A") and not in_json.warnings


def test_answers_with_a_false_label_are_not_trained(tmp_path):
    rows = [{"prompt": f"Q{i}", "completion": f"Answer {i}", "label": i % 2 == 0} for i in range(20)]
    loaded = load(tmp_path, "prompt_completion", rows)
    assert [example.messages[0]["content"] for example in loaded.examples] == [f"Q{i}" for i in range(0, 20, 2)]
    assert (loaded.metrics["left_out_label_false"], loaded.metrics["rows_broken"]) == (10, 0)
    rejected = list(loaded.rejected.rows())
    assert [(row["row"], row["reason"]) for row in rejected] == [(i + 1, "label false") for i in range(1, 20, 2)]


def test_a_label_that_is_a_class_is_not_read(tmp_path):
    rows = [{"prompt": f"Q{i}", "completion": "good", "label": i % 2} for i in range(10)]
    loaded = load(tmp_path, "prompt_completion", rows)
    assert len(loaded.examples) == 10
    assert loaded.metrics["columns_not_read"] == "label (10)" and "label (10)" in loaded.warnings[0]


@pytest.mark.parametrize("format", ["prompt_completion", "alpaca", "gsm8k"])
def test_a_split_column_decides_in_every_format(tmp_path, format):
    names = {"prompt_completion": ("prompt", "completion"), "alpaca": ("instruction", "output")}
    question, answer = names.get(format, ("question", "answer"))
    rows = [{question: f"Q{i}", answer: "#### 5", "split": ("test", "train")[i % 2]} for i in range(30)]
    loaded = load(tmp_path, format, rows, sizes={"train": 15, "test": 15})
    assert [example.split for example in loaded.examples] == [row["split"] for row in rows]


def test_only_the_completion_of_a_list_of_turns_is_trained(tmp_path):
    rows = [
        {
            "prompt": said(f"Q{i}", "example answer", "And now?"),
            "completion": [{"role": "assistant", "content": "B"}],
        }
        for i in range(10)
    ]
    loaded = load(tmp_path, "prompt_completion", rows)
    assert loaded.examples[4].messages == said("Q4", "example answer", "And now?", "B")
    assert [example.turn_weights for example in loaded.examples] == [[0.0, 0.0, 0.0, 1.0]] * 10


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_reasoning_is_part_of_its_turn(tmp_path, field):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Q{i}"},
                {"role": "assistant", field: "Let me think.", "content": f"A{i}"},
            ]
        }
        for i in range(10)
    ]
    loaded = load(tmp_path, "messages", "".join(json.dumps(line) + "\n" for line in lines), "data.jsonl")
    answer = {"role": "assistant", "content": "A0", "reasoning_content": "Let me think."}
    assert loaded.examples[0].messages[1] == answer
    row = loaded.examples[0].row
    assert row["messages"][1] == {"role": "assistant", "content": "A0"} and json.loads(row["turns"])[1] == answer


def test_tool_calls_are_part_of_their_turn(tmp_path):
    def turns(i, arguments):
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        asked = {"role": "user", "content": f"Weather in town {i}?"}
        return [asked, {"role": "assistant", "content": "Let me look that up.", "tool_calls": [call]}]

    # Half of the rows have arguments as JSON text, as OpenAI does; templates want an object.
    lines = [{"messages": turns(i, {"town": i} if i % 2 else json.dumps({"town": i}))} for i in range(10)]
    loaded = load(tmp_path, "messages", "".join(json.dumps(line) + "\n" for line in lines), "data.jsonl")
    assert [example.messages for example in loaded.examples] == [turns(i, {"town": i}) for i in range(10)]


def test_answers_of_gsm8k_need_not_end_in_a_plain_number(tmp_path):
    finals = ["$1,000", "3/4", "20%", "5 apples"]
    rows = [{"question": f"Q{i}", "answer": f"so\n#### {finals[i % 4]}"} for i in range(20)]
    loaded = load(tmp_path, "gsm8k", rows, sizes={"train": 20})
    assert [example.messages for example in loaded.examples] == [said(r["question"], r["answer"]) for r in rows]
    assert [example.source["final"] for example in loaded.examples[:4]] == finals
    assert loaded.metrics["final_answers_not_numbers"] == 15 and "15 answers" in loaded.warnings[0]
