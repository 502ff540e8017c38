"""Format `reasoning_gym`: the same distinct problems on every machine, with worked answers."""

import random
import re

import pytest

from tests.support.tiny_datasets import SIZES, by_split, gym_spec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError


def test_fills_splits_with_worked_answers_and_repeats_itself():
    loaded = load_examples(gym_spec())
    assert by_split(loaded.examples) == SIZES
    assert len({example.question for example in loaded.examples}) == sum(SIZES.values())
    assert all(re.search(r"\n#### -?[\d.,/]+$", example.messages[1]["content"]) for example in loaded.examples)
    assert [example.row for example in load_examples(gym_spec()).examples] == [e.row for e in loaded.examples]
    other = load_examples(gym_spec(seed=5))
    assert {e.question for e in other.examples} != {e.question for e in loaded.examples}


def test_does_not_touch_the_global_generator():
    random.seed(1)
    before = random.getstate()
    load_examples(gym_spec())
    assert random.getstate() == before


def test_template_is_the_generator_that_was_called(monkeypatch):
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


def test_drops_repeated_questions(monkeypatch):
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset

    plain = GSMSymbolicDataset.__getitem__

    def repeating(self, number):
        problem = plain(self, number // 2 * 2)
        return {**problem, "question": problem["question"].upper() + "\n" if number % 2 else problem["question"]}

    monkeypatch.setattr(GSMSymbolicDataset, "__getitem__", repeating)
    loaded = load_examples(gym_spec())
    assert by_split(loaded.examples) == SIZES
    assert loaded.metrics["duplicate_questions_dropped"] == sum(SIZES.values()) - 1
    assert all(example.source["number"] % 2 == 0 for example in loaded.examples)


def test_gives_up_where_questions_run_out(monkeypatch):
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset

    plain = GSMSymbolicDataset.__getitem__
    monkeypatch.setattr(GSMSymbolicDataset, "__getitem__", lambda self, number: plain(self, number % 3))
    with pytest.raises(InputError, match=r"holds 3 distinct questions, `sizes` of gsm asks for 12"):
        load_examples(gym_spec())


def test_other_tasks_have_plain_answers_and_no_template():
    examples = load_examples(gym_spec(task="basic_arithmetic")).examples
    assert {example.source["template"] for example in examples} == {None}
    assert all(example.messages[1]["content"].lstrip("-").isdigit() for example in examples)


@pytest.mark.parametrize("task", ["no_such_task", "composite"])
def test_unusable_task_is_named(task):
    with pytest.raises(InputError, match=rf"gsm: task '{task}'.*`task:`"):
        load_examples(gym_spec(task=task))
