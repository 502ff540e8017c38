"""`turns_joined`: rows become conversations of several turns, in order, drawn by the seed, and counted."""

import json

import pytest

from tokenuq_ml.config import DatasetSpec, Split
from tokenuq_ml.costs.lengths import lengths
from tokenuq_ml.data.joined_turns import JOINED
from tokenuq_ml.data.load import first_conversations, load_examples
from tokenuq_ml.errors import InputError


def alpaca_file(tmp_path, rows=40, **more):
    path = tmp_path / "rows.json"
    row = lambda number: {"instruction": f"ask {number}", "output": f"answer {number}"}  # noqa: E731
    path.write_text(json.dumps([{**row(number), **more.get(f"row_{number}", {})} for number in range(rows)]))
    return path


def spec(file, **changes):
    given = {
        "format": "alpaca",
        "path": str(file),
        "sizes": {"train": 8, "validation": 2, "test": 2},
        "turns_joined": 3,
    }
    return DatasetSpec(**{"name": "d", **given, **changes})


def numbers(example):
    return [int(turn["content"].split()[1]) for turn in example.messages]


def test_three_rows_become_one_conversation_and_sizes_count_conversations(tmp_path):
    path = alpaca_file(tmp_path)
    loaded = load_examples(spec(path))
    by_split: dict[Split, list] = {}
    for example in loaded.examples:
        by_split.setdefault(example.split, []).append(example)
    assert {split: len(examples) for split, examples in by_split.items()} == {"train": 8, "validation": 2, "test": 2}
    assert loaded.metrics["rows_train"] == 8 and loaded.metrics["rows_joined"] == 36
    single = load_examples(spec(path, turns_joined=1, sizes={"train": 24, "validation": 6, "test": 6}))
    for split, examples in by_split.items():
        drawn = [int(example.id.split("/")[1]) for example in single.examples if example.split == split]
        assert [number for example in examples for number in numbers(example)[::2]] == drawn == sorted(drawn)
        for example in examples:
            assert [turn["role"] for turn in example.messages] == ["user", "assistant"] * 3
            assert numbers(example)[::2] == numbers(example)[1::2]
            assert example.id == example.source[JOINED][0] == f"d/{numbers(example)[0]:06d}"
            assert example.source[JOINED] == [f"d/{number:06d}" for number in numbers(example)[::2]]


def test_another_seed_joins_other_rows(tmp_path):
    path = alpaca_file(tmp_path)
    joined = [
        [example.source[JOINED] for example in load_examples(spec(path, seed=seed)).examples] for seed in (0, 0, 1)
    ]
    assert joined[0] == joined[1] != joined[2]


def test_rows_that_fill_no_conversation_are_counted(tmp_path):
    loaded = load_examples(spec(alpaca_file(tmp_path, rows=11), sizes="all"))
    assert [numbers(example)[::2] for example in loaded.examples] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert (loaded.metrics["rows_joined"], loaded.metrics["rows_not_joined"]) == (9, 2)


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds 30 distinct questions, `sizes` of d asks for 36 \(3 for each conv"):
        load_examples(spec(alpaca_file(tmp_path, rows=30)))
    with pytest.raises(
        InputError, match="split 'validation' has 2 rows, and `turns_joined` makes one conversation of 3"
    ):
        load_examples(spec(alpaca_file(tmp_path, rows=20), sizes={"train": 0.8, "validation": 0.1, "test": 0.1}))


def test_weights_stay_with_their_turns_and_the_last_answer_is_that_of_the_conversation(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = lambda n, **answer: [  # noqa: E731
        {"role": "user", "content": f"ask {n}"},
        {"role": "assistant", "content": f"answer {n}", **answer},
    ]
    rows = [turns(0), turns(1, weight=0.5), turns(2)]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (example,) = load_examples(spec(path, format="messages", sizes="all")).examples
    assert example.turn_weights == [0, 1, 0, 0.5, 0, 1]
    (example,) = load_examples(spec(path, format="messages", sizes="all", train_on="last")).examples
    assert example.turn_weights == [0, 0, 0, 0, 0, 1]


def test_a_row_that_cannot_follow_another_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"d: d/000001 has a system turn.*`columns: \{system: null\}`"):
        load_examples(spec(alpaca_file(tmp_path, rows=3, row_1={"system": "Be brief."}), sizes="all"))
    (example,) = load_examples(spec(alpaca_file(tmp_path, rows=3, row_0={"system": "Be brief."}), sizes="all")).examples
    assert [turn["role"] for turn in example.messages][:3] == ["system", "user", "assistant"]
    tools = {"tools": [{"name": "f"}]}
    with pytest.raises(InputError, match="d/000002 has other tools or arguments of the chat template than d/000000"):
        load_examples(spec(alpaca_file(tmp_path, rows=3, row_2=tools), sizes="all"))


def test_a_plan_counts_the_tokens_of_conversations(tmp_path):
    path = alpaca_file(tmp_path)
    assert [len(turns) for turns in first_conversations(spec(path), "train", 2)] == [6, 6]
    joined = lengths(spec(path), "train", 1e9, {})
    single = lengths(spec(path, turns_joined=1), "train", 1e9, {})
    assert joined.rows == single.rows == 8
    assert joined.response == pytest.approx(3 * single.response, rel=0.1)
    unread = [spec(path, path=None, id="a/b", turns_joined=count) for count in (1, 3)]
    one, three = (lengths(each, "train", 1e9, {}) for each in unread)
    assert three.tokens == 3 * one.tokens


def test_generated_problems_are_joined():
    pytest.importorskip("reasoning_gym")
    made = DatasetSpec(name="d", format="reasoning_gym", task="gsm_symbolic", sizes={"train": 2}, turns_joined=2)
    assert [len(example.messages) for example in load_examples(made).examples] == [4, 4]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"turns_joined": 0}, "greater than or equal to 1"),
        ({"format": "ifeval"}, "'turns_joined' cannot join rows of format 'ifeval': its rows have no answers"),
        ({"format": "raw_text"}, "'turns_joined' cannot join rows of format 'raw_text'"),
        ({"format": "mix", "path": None, "mix": {"a": 1.0}}, "set 'turns_joined' there"),
        ({"format": "synthetic_language", "path": None}, "generates its documents; remove 'turns_joined'"),
    ],
)
def test_wrong_uses_are_refused(tmp_path, changes, error):
    with pytest.raises(ValueError, match=error):
        spec(tmp_path, **changes)
