"""Datasets: the same examples everywhere, no question in two splits, and bad rows named by file and line."""

import json
import random
import re
import sys

import pytest

from tokenuq_ml.datasets import load_examples
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec

SIZES = {"train": 6, "validation": 2, "test": 4}
GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}


def write_lines(path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str = "Yes.", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def messages_spec(path, sizes=None, **more) -> DatasetSpec:
    return DatasetSpec(name="chats", format="messages", path=str(path), sizes=sizes or {"train": 1}, **more)


def gym_spec(**more) -> DatasetSpec:
    return DatasetSpec(**{"name": "gsm", "format": "reasoning_gym", "task": "gsm_symbolic", "sizes": SIZES, **more})


def by_split(examples) -> dict[str, int]:
    counts = {}
    for example in examples:
        counts[example.split] = counts.get(example.split, 0) + 1
    return counts


# reasoning_gym


def test_gym_fills_splits_with_worked_answers_and_repeats_itself():
    loaded = load_examples(gym_spec())
    assert by_split(loaded.examples) == SIZES
    assert len({example.question for example in loaded.examples}) == sum(SIZES.values())
    assert all(re.search(r"\n#### -?[\d.,/]+$", example.messages[1]["content"]) for example in loaded.examples)
    assert [example.row for example in load_examples(gym_spec()).examples] == [e.row for e in loaded.examples]
    other = load_examples(gym_spec(seed=5))
    assert {e.question for e in other.examples} != {e.question for e in loaded.examples}


def test_gym_does_not_touch_the_global_generator():
    random.seed(1)
    before = random.getstate()
    load_examples(gym_spec())
    assert random.getstate() == before


def test_gym_template_is_the_generator_that_was_called(monkeypatch):
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset

    plain, called = GSMSymbolicDataset._load_generators, []

    def recording(self):
        def wrap(number, generator):
            def generate(*args):
                called.append(number)
                return generator(*args)

            return generate

        return {number: wrap(number, generator) for number, generator in plain(self).items()}

    monkeypatch.setattr(GSMSymbolicDataset, "_load_generators", recording)
    examples = load_examples(gym_spec()).examples
    assert [e.source["template"] for e in examples] == [called[e.source["number"]] for e in examples]
    assert len(set(called)) > 3


def test_gym_drops_repeated_questions(monkeypatch):
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset

    plain = GSMSymbolicDataset.__getitem__

    def repeating(self, number):
        problem = plain(self, number // 2 * 2)
        return {**problem, "question": problem["question"].upper() + "\n" if number % 2 else problem["question"]}

    monkeypatch.setattr(GSMSymbolicDataset, "__getitem__", repeating)
    loaded = load_examples(gym_spec())
    assert by_split(loaded.examples) == SIZES
    assert loaded.duplicates_dropped == sum(SIZES.values()) - 1
    assert all(example.source["number"] % 2 == 0 for example in loaded.examples)


def test_gym_gives_up_where_questions_run_out(monkeypatch):
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset

    plain = GSMSymbolicDataset.__getitem__
    monkeypatch.setattr(GSMSymbolicDataset, "__getitem__", lambda self, number: plain(self, number % 3))
    with pytest.raises(InputError, match=r"holds 3 distinct questions, `sizes` of gsm asks for 12"):
        load_examples(gym_spec())


def test_gym_other_tasks_have_plain_answers_and_no_template():
    examples = load_examples(gym_spec(task="basic_arithmetic")).examples
    assert {example.source["template"] for example in examples} == {None}
    assert all(example.messages[1]["content"].lstrip("-").isdigit() for example in examples)


@pytest.mark.parametrize("task", ["no_such_task", "composite"])
def test_gym_unusable_task_is_named(task):
    with pytest.raises(InputError, match=rf"gsm: task '{task}'.*`task:`"):
        load_examples(gym_spec(task=task))


# drawing


def test_more_rows_than_asked_are_the_first_of_a_seeded_shuffle(tmp_path):
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
    assert loaded.duplicates_dropped == 2
    assert [e.source["line"] for e in loaded.examples] == [1, 3, 4]


def test_fewer_rows_than_asked_says_both_numbers(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [chat("A"), chat("B"), chat("a")])
    with pytest.raises(InputError, match=r"a\.jsonl: holds 2 distinct questions.*asks for 12"):
        load_examples(messages_spec(path, SIZES))


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


def test_messages_a_question_in_two_named_splits_is_refused(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [chat("A", split="train"), chat("B", split="test"), chat(" a", split="test")]
    )
    with pytest.raises(InputError, match=r"chats/000001 in split 'train' and chats/000003 in 'test'"):
        load_examples(messages_spec(path, {"train": 1, "test": 1}))
    assert len(load_examples(messages_spec(path, {"test": 2})).examples) == 2


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
        ("", "not JSON"),
        ('[{"instruction": "x", "outp', "not JSON"),
        ("{}", "must be a JSON list"),
        ("[]", "at least one row"),
        ('[{"instruction": "x", "output": "y"}, 5]', "row 2: not a JSON object"),
        ('[{"instruction": "x", "output": "y"}, {"instruction": "z"}]', "row 2: 'output' is missing"),
        ('[{"instruction": "x", "output": "y"}, {"instruction": "z", "output": ""}]', "row 2: 'output' is empty"),
        ('[{"instruction": null, "output": "y"}]', "row 1: 'instruction' is not text"),
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


def test_a_missing_package_or_file_names_the_mend(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"packed: .*no_such_rows.*pip install --no-deps some-rows==1\.0"):
        load_examples(package_spec("no_such_rows.inner", requirement="some-rows==1.0"))
    with pytest.raises(InputError, match=r"pip install --no-deps no_such_rows$"):
        load_examples(package_spec("no_such_rows"))
    with pytest.raises(InputError, match=r"packed_rows holds no such file; mend `file:` of packed"):
        load_examples(package_spec("packed_rows", "nothing.jsonl"))
    with pytest.raises(InputError, match=r"nothing\.jsonl: no such file; mend `path:` of chats"):
        load_examples(messages_spec(tmp_path / "nothing.jsonl"))
