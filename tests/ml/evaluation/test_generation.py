"""Batched greedy generation against a one-by-one argmax loop over plain forward passes."""

from logging import StreamHandler
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig
from transformers.utils import logging

from tests.support.generation_prompts import TOKENIZER, prompts
from tests.support.tiny_models import VOCAB, tiny_model, tiny_peft
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.evaluation.stop_strings import cut

NEW = 12


@torch.no_grad()
def one_by_one(model, prompt: list[int], ends: set[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) - len(prompt) < NEW:
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def run(model, batch_size: int, tokenizer=TOKENIZER, stop=(), **kwargs) -> list[list[int]]:
    return generate(model, tokenizer, prompts(), GreedyDecoding(NEW, batch_size, stop), **kwargs)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_any_batch_size_equals_a_one_by_one_argmax_loop(kind):
    model = tiny_model(kind)
    expected = [one_by_one(model, prompt, {2}) for prompt in prompts()]
    assert len({tuple(answer) for answer in expected}) > 3
    for batch_size in (1, 3, 16):
        assert run(model, batch_size) == expected


def test_answers_stop_before_any_end_id():
    model = tiny_model()
    free = [one_by_one(model, prompt, set()) for prompt in prompts()]
    by_config, by_tokenizer = free[0][3], free[2][1]
    model.generation_config = GenerationConfig(eos_token_id=[by_config, 2], pad_token_id=2)
    tokenizer = SimpleNamespace(eos_token_id=by_tokenizer, pad_token_id=by_tokenizer)
    ends = {by_config, by_tokenizer, 2}
    answers = run(model, 4, tokenizer)
    assert answers == [one_by_one(model, prompt, ends) for prompt in prompts()]
    assert len(answers[0]) <= 3 and len(answers[2]) <= 1
    assert not ends & {token for answer in answers for token in answer}


def test_a_model_whose_likeliest_first_token_is_an_end_is_not_refused():
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(VOCAB))
    assert generate(model, TOKENIZER, prompts(3), GreedyDecoding(4, 2)) == [[], [], []]


def test_the_models_own_generation_config_is_ignored_and_restored():
    model = tiny_model()
    expected = run(model, 3)
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=9.0, max_length=5, eos_token_id=2)
    model.generation_config = own
    assert run(model, 3) == expected
    assert model.generation_config is own and own.repetition_penalty == 9.0


def test_a_tokenizer_without_padding_id_gives_the_same_answers():
    model = tiny_model()
    assert run(model, 3, SimpleNamespace(eos_token_id=2, pad_token_id=None)) == run(model, 3)


def test_the_adapter_is_active_and_dropout_is_off():
    model = tiny_peft(dropout=0.5).eval()
    expected = [one_by_one(model, prompt, {2}) for prompt in prompts()]
    with model.disable_adapter():
        without = run(model, 3)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    frozen.eval()
    before = [module.training for module in model.modules()]
    assert run(model, 3) == expected != without
    assert [module.training for module in model.modules()] == before
    assert model.training and not frozen.training


def test_the_training_mode_is_restored_after_an_error():
    model = tiny_model().train()

    def fail(done):
        raise KeyboardInterrupt

    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        run(model, 3, finished=fail)
    assert model.training and model.generation_config is own


def test_batches_are_reported_as_they_finish_longest_first():
    told = []
    answers = run(tiny_model(), 3, finished=told.append)
    assert [len(batch) for batch in told] == [3, 3, 1]
    assert {index: ids for batch in told for index, ids in batch.items()} == dict(enumerate(answers))
    lengths = [len(prompts()[index]) for batch in told for index in batch]
    assert lengths == sorted(lengths, reverse=True)


class Letters:
    """A tokenizer of single letters: token 3 is `a`, 4 is `b`, and so on. What it pads with ends no answer."""

    eos_token_id, pad_token_id = 2, 1

    def decode(self, ids, **_) -> str:
        return "".join(chr(ord("a") + token - 3) for token in ids if token > 2)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_stop_string_ends_an_answer_at_any_token_boundary(batch_size):
    model, letters = tiny_model(), Letters()
    free = [one_by_one(model, prompt, {2}) for prompt in prompts()]
    # Two tokens of one answer, and one that comes first in another.
    stop = (letters.decode(free[0][2:4]), letters.decode(free[2][:1]))

    def expected(ids: list[int]) -> list[int]:
        for end in range(1, len(ids) + 1):
            if any(string in letters.decode(ids[:end]) for string in stop):
                return ids[:end]
        return ids

    answers = run(model, batch_size, letters, stop=stop)
    assert answers == [expected(ids) for ids in free] != free
    for answer, ids in zip(answers, free, strict=True):
        text = letters.decode(ids)
        places = [text.find(string) for string in stop if string in text]
        assert cut(letters.decode(answer), stop) == text[: min(places, default=len(text))]


def test_transformers_warnings_are_silenced_and_the_verbosity_is_restored():
    """A text past the model's length draws advice from transformers, once a process."""
    said = []
    handler = StreamHandler()
    handler.emit = lambda record: said.append(record.getMessage())
    verbosity = logging.get_verbosity()
    logging.add_handler(handler)
    logging.set_verbosity_warning()
    try:
        generate(tiny_model(), TOKENIZER, [[5] * 510, [7]], GreedyDecoding(8, 2))
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.remove_handler(handler)
        logging.set_verbosity(verbosity)
    assert not said


def test_runs_under_bfloat16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        answers = run(tiny_peft(), 3)
    assert len(answers) == len(prompts()) and all(len(answer) <= NEW for answer in answers)
    assert any(answers)


def test_no_prompts_give_no_answers_and_an_empty_prompt_is_refused():
    model = tiny_model()
    assert generate(model, TOKENIZER, [], GreedyDecoding(2, 2)) == []
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(model, TOKENIZER, [[5], []], GreedyDecoding(2, 2))
