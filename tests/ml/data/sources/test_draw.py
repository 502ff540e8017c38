"""Which rows are drawn: repeats, shares, whole questions, and the same rows as ever for the default keys."""

import random
from collections import Counter, defaultdict

import pytest

from tests.support.tiny_datasets import by_split, chat, messages_spec, write_lines
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError

ANSWERS = 4


def sampled(questions: int, answers: int = ANSWERS) -> list[dict]:
    return [chat(f"Q{q}", f"Way {a}") for q in range(questions) for a in range(answers)]


def load(tmp_path, rows, sizes, **keys):
    return load_examples(messages_spec(write_lines(tmp_path / "a.jsonl", rows), sizes, **keys))


def splits_by_question(examples) -> dict[str, set[str]]:
    found = defaultdict(set)
    for example in examples:
        found[example.question].add(example.split)
    return found


def expected_draw(rows: list[dict], sizes: dict[str, int]) -> dict[int, str]:
    """Line -> split, as plain lists: the first row of each question, shuffled, an evaluation split before train."""
    named = any("split" in row for row in rows)
    parts = ["test", "ood", "validation", "train"] if named else [None]
    claimed, drawn = set(), {}
    for part in parts:
        if part is not None and part not in sizes:
            continue
        usable, seen = [], set()
        for line, row in enumerate(rows, 1):
            question = " ".join(row["messages"][0]["content"].casefold().split())
            if row.get("split") == part and question not in seen:
                seen.add(question)
                if question not in claimed:
                    usable.append((line, question))
        claimed |= {question for _, question in usable}
        order = list(range(len(usable)))
        random.Random("chats|3").shuffle(order)
        names = [split for split in ("train", "validation", "test", "ood") for _ in range(sizes.get(split, 0))]
        names = names if part is None else [part] * sizes[part]
        drawn.update({usable[index][0]: split for index, split in zip(order, names, strict=False)})
    return drawn


@pytest.mark.parametrize("named", [False, True])
def test_the_default_draws_the_rows_that_it_always_drew(tmp_path, named):
    rng = random.Random(5)
    rows = [
        chat(rng.choice(["Why {}?", " why  {}?", "WHAT {}?"]).format(rng.randrange(60)), f"A{rng.randrange(3)}")
        | ({"split": rng.choice(["train", "validation", "test", "ood"])} if named else {})
        for _ in range(200)
    ]
    sizes = {"train": 20, "validation": 5, "test": 10}
    examples = load(tmp_path, rows, sizes, seed=3).examples
    assert {example.source["line"]: example.split for example in examples} == expected_draw(rows, sizes)


@pytest.mark.parametrize("duplicates", ["conversation", "keep"])
def test_all_rows_of_a_question_go_to_one_split(tmp_path, duplicates):
    sizes = {"train": 0.5, "validation": 0.25, "test": 0.25}
    loaded = load(tmp_path, sampled(20), sizes, duplicates=duplicates)
    assert by_split(loaded.examples) == {"train": 40, "validation": 20, "test": 20}
    assert all(len(splits) == 1 for splits in splits_by_question(loaded.examples).values())
    assert set(Counter(example.question for example in loaded.examples).values()) == {ANSWERS}
    assert loaded.metrics["rows_left_out"] == loaded.metrics["duplicate_questions_dropped"] == 0


def test_a_count_is_exact_and_cuts_the_last_question(tmp_path):
    loaded = load(tmp_path, sampled(10), {"train": 10, "validation": 3, "test": 4}, duplicates="conversation")
    assert by_split(loaded.examples) == {"train": 10, "validation": 3, "test": 4}
    counts = Counter((example.split, example.question) for example in loaded.examples)
    assert sorted(counts.values()) == [2, 3, 4, 4, 4]
    assert all(len(splits) == 1 for splits in splits_by_question(loaded.examples).values())
    with pytest.raises(
        InputError, match=r"holds 40 rows of 10 questions, `sizes` of chats asks for 40 \(all rows of a"
    ):
        load(tmp_path, sampled(10), {"train": 38, "test": 2}, duplicates="conversation")


def test_a_share_keeps_the_last_question_complete(tmp_path):
    loaded = load(tmp_path, sampled(5), {"train": 0.7, "test": 0.3}, duplicates="keep")
    assert by_split(loaded.examples) == {"train": 16, "test": 4}, "14 rows are 3.5 questions"


def test_conversations_are_compared_with_case_and_weights(tmp_path):
    rows = [chat("Why?"), chat("why?"), chat("Why?", "No."), chat("Why?"), {**chat("Why?"), "tools": [{"name": "f"}]}]
    loaded = load(tmp_path, rows, "all", duplicates="conversation")
    assert [example.source["line"] for example in loaded.examples] == [1, 2, 3, 5]
    assert [(row["line"], row["reason"]) for row in loaded.rejected.rows()] == [(4, "repeated conversation")]
    assert loaded.metrics["left_out_repeated_conversation"] == loaded.metrics["rows_left_out"] == 1
    assert loaded.metrics["rows_broken"] == 0
    kept = load(tmp_path, rows, "all", duplicates="keep")
    assert len(kept.examples) == 5 and not kept.rejected.count
    questions = load(tmp_path, rows, "all")
    assert [example.source["line"] for example in questions.examples] == [1]


def test_named_splits_do_not_share_a_question_whatever_is_kept(tmp_path):
    rows = [{**row, "split": split} for split in ("train", "test") for row in sampled(3, 2)]
    rows += [chat("Q9", "A", split="train"), chat("q9", "B", split="train")]
    loaded = load(tmp_path, rows, "all", duplicates="keep")
    assert by_split(loaded.examples) == {"test": 6, "train": 2}
    assert loaded.metrics["questions_in_two_splits"] == loaded.metrics["left_out_in_two_splits"] == 6


def test_all_rows_go_to_train_or_to_the_splits_that_they_name(tmp_path):
    rows = [chat(f"Q{i}") for i in range(9)]
    assert by_split(load(tmp_path, rows, "all").examples) == {"train": 9}
    named = [{**row, "split": "test" if i % 3 == 0 else "train"} for i, row in enumerate(rows)]
    assert by_split(load(tmp_path, named, "all").examples) == {"train": 6, "test": 3}
    shares = load(tmp_path, named, {"train": 0.5, "test": 0.5}).examples
    assert by_split(shares) == {"train": 3, "test": 1}, "shares of each split; 1.5 rows are 1"


def test_a_split_that_rows_do_not_name_is_drawn_from_one_that_they_do(tmp_path):
    rows = [chat(f"Q{i}", split=("test", "train")[i % 2]) for i in range(40)]
    drawn_from = {"train": "train", "validation": "train", "test": "test"}
    for sizes, expected in (
        ({"train": 12, "validation": 8, "test": 10}, {"train": 12, "validation": 8, "test": 10}),
        ({"train": 0.8, "validation": 0.2, "test": 1.0}, {"train": 16, "validation": 4, "test": 20}),
    ):
        examples = load(tmp_path, rows, sizes, drawn_from=drawn_from).examples
        assert by_split(examples) == expected
        assert all((example.source["line"] % 2 == 1) == (example.split == "test") for example in examples)
    with pytest.raises(
        InputError, match=r"no row belongs to 'train', which `drawn_from` of chats names \(rows name no s"
    ):
        load(tmp_path, [chat(f"Q{i}") for i in range(40)], sizes, drawn_from=drawn_from)


def test_shares_of_parts(tmp_path):
    for name, count in (("train", 20), ("test", 5)):
        write_lines(tmp_path / f"{name}.jsonl", [chat(f"{name} {i}") for i in range(count)])
    drawn_from = {"train": "train", "validation": "train", "test": "test"}
    sizes = {"train": 0.9, "validation": 0.1, "test": 1.0}
    loaded = load_examples(messages_spec(tmp_path, sizes, drawn_from=drawn_from))
    assert by_split(loaded.examples) == {"train": 18, "validation": 2, "test": 5}
    every = messages_spec(tmp_path, "all", drawn_from={"train": "train", "test": "test"})
    assert by_split(load_examples(every).examples) == {"train": 20, "test": 5}


def test_a_share_that_is_no_row_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds 9 distinct questions, and a share of 0\.01 of them is no row for spl"):
        load(tmp_path, [chat(f"Q{i}") for i in range(9)], {"train": 0.99, "test": 0.01})


def test_shares_above_one_are_refused_unless_rows_name_their_splits(tmp_path):
    rows = [chat(f"Q{i}") for i in range(9)]
    with pytest.raises(InputError, match=r"the shares of the rows for train, test add up to 1\.1, above 1; lower them"):
        load(tmp_path, rows, {"train": 0.9, "test": 0.2})
    named = [{**row, "split": "test" if i % 3 == 0 else "train"} for i, row in enumerate(rows)]
    assert by_split(load(tmp_path, named, {"train": 1.0, "test": 1.0}).examples) == {"train": 6, "test": 3}


def test_rows_of_another_split_than_their_part_are_counted(tmp_path):
    write_lines(tmp_path / "train.jsonl", [chat("A", split="train"), chat("B", split="test")])
    write_lines(tmp_path / "test.jsonl", [chat("C", split="test")])
    loaded = load_examples(messages_spec(tmp_path, "all", drawn_from={"train": "train", "test": "test"}))
    assert by_split(loaded.examples) == {"train": 2, "test": 1}
    assert loaded.metrics["rows_naming_another_split"] == 1 and "`drawn_from` decides" in loaded.warnings[0]


def test_rows_that_a_rule_leaves_out_are_not_broken(tmp_path):
    rows = [{"prompt": f"Q{i}", "completion": "A", "label": i % 2 == 0} for i in range(10)] + [{"prompt": "Q"}]
    spec = messages_spec(write_lines(tmp_path / "a.jsonl", rows), "all").model_copy(
        update={"format": "prompt_completion", "max_broken_share": 0.1}
    )
    loaded = load_examples(spec)
    assert len(loaded.examples) == 5
    assert (loaded.metrics["rows_broken"], loaded.metrics["rows_left_out"]) == (1, 5)
    assert loaded.metrics["left_out_label_false"] == 5
    assert Counter(row["reason"] for row in loaded.rejected.rows()) == {"label false": 5, "missing field": 1}
    with pytest.raises(InputError, match=r"1 of 11 rows are broken \(1 missing field\), more than .* 0\.01"):
        load_examples(spec.model_copy(update={"max_broken_share": 0.01}))
