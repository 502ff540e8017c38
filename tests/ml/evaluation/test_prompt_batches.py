"""Answers of a batch are those of an argmax loop over complete forward passes, or generation is refused."""

import pytest
import torch

from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.zoo import tiny_zoo_model
from tests.support.zoo_outcomes import texts
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate

NEW = 8
RIGHT = ["llama", "gemma2", "gemma3_text", "gpt2", "mamba", "falcon_h1", "jamba", "rwkv", "deepseek_v3", "mixtral"]
"""Caches of attention, windows, states and both; RWKV's state takes in the padding of a batch."""
REFUSED = {
    "roberta": "other logits than those of its forward pass",
    "hrm_text": "cannot generate with HrmText",
    "xlstm": "cannot generate with xLSTM",
}


def answers(kind: str) -> tuple[list[list[int]], list[list[int]]]:
    """Generated answers, and those of an argmax loop, up to the first end of turn."""
    model, tokenizer = tiny_zoo_model(kind), tiny_tokenizer()
    end, prompts = tokenizer.eos_token_id, [list(text.input_ids) for text in texts()]
    model.generation_config.eos_token_id = None
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + NEW and (len(ids) == len(prompt) or ids[-1] != end):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append([token for token in ids[len(prompt) :] if token != end])
    return generate(model, tokenizer, prompts, GreedyDecoding(NEW, len(prompts))), expected


@pytest.mark.parametrize("kind", RIGHT)
def test_answers_are_those_of_an_argmax_loop(kind):
    got, expected = answers(kind)
    assert got == expected and len({tuple(answer) for answer in got}) > 1


@pytest.mark.parametrize("kind", REFUSED)
def test_generation_that_is_not_the_forward_pass_is_refused(kind):
    with pytest.raises(InputError, match=REFUSED[kind]):
        answers(kind)
