"""Answers that resume after an interruption, compared with a run without one."""

import pytest

from tests.support.generation_prompts import TOKENIZER, prompts
from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.evaluation import answers as answers_module
from tokenuq_ml.evaluation.answer_cache import AnswerCache
from tokenuq_ml.evaluation.answers import resumable_answers
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate

DECODING = GreedyDecoding(max_new_tokens=6, batch_size=3)


def run(model, cache: AnswerCache, asked, progress=lambda prompts: None):
    return resumable_answers(model, TOKENIZER, asked, DECODING, cache, progress)


def interrupt_after(batches: int):
    """A progress that stands for Ctrl-C once so many batches are done."""
    told = []

    def progress(count: int) -> None:
        told.append(count)
        # The first report is of what is there already.
        if len(told) == 1 + batches:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("batches", [1, 2])
def test_a_resumed_run_generates_only_the_remaining_batches(tmp_path, monkeypatch, batches):
    model, asked = tiny_model(), prompts(8)
    expected = generate(model, TOKENIZER, asked, DECODING)
    with pytest.raises(KeyboardInterrupt):
        run(model, AnswerCache(tmp_path, model="m"), asked, interrupt_after(batches))
    continued = []

    def counting(model, tokenizer, todo, *rest):
        continued.extend(todo)
        return generate(model, tokenizer, todo, *rest)

    monkeypatch.setattr(answers_module, "generate", counting)
    told = []
    cache = AnswerCache(tmp_path, model="m")
    assert len(cache) == 3 * batches
    # In another order: what is asked decides, not where it stands.
    assert run(model, cache, asked[::-1], told.append) == expected[::-1]
    assert len(continued) == 8 - 3 * batches and told[0] == 3 * batches and sum(told) == 8
    longest = sorted(map(len, asked), reverse=True)[: 3 * batches]
    assert sorted(map(len, continued), reverse=True) == sorted(map(len, asked), reverse=True)[len(longest) :]
    continued.clear()
    assert run(model, AnswerCache(tmp_path, model="m"), asked) == expected and not continued


def test_two_models_in_one_folder_do_not_share_answers(tmp_path):
    student, base, asked = tiny_peft(), tiny_model(), prompts(5)
    with pytest.raises(KeyboardInterrupt):
        run(base, AnswerCache(tmp_path, adapter=None), asked, interrupt_after(1))
    expected = generate(student, TOKENIZER, asked, DECODING)
    assert run(student, AnswerCache(tmp_path, adapter="d"), asked) == expected
    assert (
        run(base, AnswerCache(tmp_path, adapter=None), asked) == generate(base, TOKENIZER, asked, DECODING) != expected
    )


def test_equal_prompts_are_answered_once(tmp_path):
    model, told = tiny_model(), []
    asked = [*prompts(3), *prompts(3)]
    cache = AnswerCache(tmp_path, model="m")
    assert run(model, cache, asked, told.append) == 2 * generate(model, TOKENIZER, prompts(3), DECODING)
    assert len(cache) == 3 and sum(told) == 6
