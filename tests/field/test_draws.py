"""Which rows of users' data are drawn: several answers per question, shares, mixes, and what is left out."""

import json
from collections import Counter

import pytest

from tests.support.tiny_datasets import by_split, chat, messages_spec, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError


def spec(path, format: str = "gsm8k", **keys) -> DatasetSpec:
    return DatasetSpec(**{"name": "field", "format": format, "path": str(path), "sizes": "all", **keys})


@pytest.fixture
def many_answers(tmp_path):
    """Four worked answers per question, as rejection sampling makes them."""
    rows = [{"question": f"Q{q}", "answer": f"way {a}\n#### {q}"} for q in range(20) for a in range(4)]
    return write_lines(tmp_path / "data.jsonl", rows)


def test_many_answers_per_question_are_kept_when_asked(many_answers):
    sizes = {"train": 48, "validation": 16, "test": 16}
    loaded = load_examples(spec(many_answers, sizes=sizes, duplicates="conversation"))
    assert by_split(loaded.examples) == sizes and loaded.metrics["rows_left_out"] == 0
    answers = Counter((example.question, example.split) for example in loaded.examples)
    assert set(answers.values()) == {4} and len(answers) == 20, "a question is in two splits"
    again = load_examples(spec(many_answers, sizes=sizes, duplicates="conversation"))
    assert again.examples == loaded.examples


def test_many_answers_per_question_are_counted_apart_when_left_out(many_answers):
    loaded = load_examples(spec(many_answers, sizes={"train": 12, "validation": 4, "test": 4}))
    assert {example.messages[1]["content"].split("\n")[0] for example in loaded.examples} == {"way 0"}
    assert loaded.metrics["left_out_repeated_question"] == loaded.metrics["rows_left_out"] == 60
    assert loaded.metrics["rows_broken"] == 0 and len(list(loaded.rejected.rows())) == 60


@pytest.mark.parametrize(("duplicates", "kept"), [("question", 2), ("conversation", 3), ("keep", 4)])
def test_the_same_conversation_twice(tmp_path, duplicates, kept):
    def pair(question, answer):
        return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}

    rows = [pair("Hi", "Hello."), pair("hi", "Hello."), pair("Hi", "Hello."), pair("Who?", "Me.")]
    loaded = load_examples(spec(write_lines(tmp_path / "a.jsonl", rows), "sharegpt", duplicates=duplicates))
    assert len(loaded.examples) == kept and loaded.metrics["rows_left_out"] == 4 - kept


def test_false_labels_count_apart_and_do_not_exceed_the_broken_share(tmp_path):
    rows = [{"prompt": f"Q{i}", "completion": f"Answer number {i}", "label": i % 2 == 0} for i in range(60)]
    loaded = load_examples(spec(write_lines(tmp_path / "data.jsonl", rows), "prompt_completion", max_broken_share=0))
    assert [example.messages[0]["content"] for example in loaded.examples] == [f"Q{i}" for i in range(0, 60, 2)]
    assert (loaded.metrics["rows_read"], loaded.metrics["rows_broken"]) == (60, 0)
    assert loaded.metrics["left_out_label_false"] == 30


def test_named_splits_are_drawn_up_to_their_sizes(tmp_path):
    rows = [{"prompt": f"Q{i}", "completion": f"A{i}", "split": ("test", "train")[i % 2]} for i in range(60)]
    path = write_lines(tmp_path / "data.jsonl", rows)
    loaded = load_examples(spec(path, "prompt_completion", sizes={"train": 20, "test": 100}))
    assert by_split(loaded.examples) == {"train": 20, "test": 30}
    assert loaded.metrics["fewer_rows_than_sizes"] == "test 30 of 100"
    assert all(rows[example.source["row"] - 1]["split"] == example.split for example in loaded.examples)
    with pytest.raises(InputError, match=r"split 'validation': no row can be drawn for it"):
        load_examples(spec(path, "prompt_completion", sizes={"train": 20, "validation": 5, "test": 5}))


def test_shares_of_a_plain_file(tmp_path):
    rows = [{"instruction": f"I{i}", "input": "", "output": f"O{i}"} for i in range(101)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    loaded = load_examples(spec(path, "alpaca", sizes={"train": 0.9, "validation": 0.05, "test": 0.05}))
    # 90.9, 5.05 and 5.05 rows: 90, 5 and 5, and the one that is left goes to the largest remainder.
    assert by_split(loaded.examples) == {"train": 91, "validation": 5, "test": 5}


@pytest.mark.parametrize("word", ["valid", "val", "dev", "Validation", " VALIDATION "])
def test_a_split_column_may_use_the_words_of_datasets(tmp_path, word):
    """Before: `dev` made the row broken."""
    rows = [chat(f"Q{n}", split=word if n % 4 == 0 else "Train") for n in range(20)]
    data = load_examples(messages_spec(write_lines(tmp_path / "d.jsonl", rows), "all"))
    assert by_split(data.examples) == {"train": 15, "validation": 5}


def test_drawn_from_maps_names_of_a_split_column(tmp_path):
    """Before: each such row was broken, as UltraChat's `train_sft`."""
    rows = [chat(f"Q{n}", split=("train_sft", "test_sft", "train_gen")[n % 3]) for n in range(30)]
    path = write_lines(tmp_path / "d.jsonl", rows)
    mapped = {"train": "train_sft", "test": "test_sft"}
    data = load_examples(messages_spec(path, "all", drawn_from=mapped))
    assert by_split(data.examples) == {"train": 10, "test": 10} and data.metrics["splits_not_drawn"] == "train_gen (10)"
    with pytest.raises(InputError, match=r"split 'train_sft' is none of .*`drawn_from: \{train: train_sft\}`"):
        load_examples(messages_spec(path, "all"))
