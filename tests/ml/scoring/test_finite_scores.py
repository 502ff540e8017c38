"""Scores that are not finite are refused with their token and the module that they come from."""

import math

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import measure_bald, score_tokens
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples

SPEC = UncertaintySpec(samples=3, dropout=0.1)


def broken_for(model, token, value=math.nan):
    """Damage the embedding of a token once the gate has met the model; the output layer is another one."""
    output_path(model)
    embedding = model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    embedding.weight[token] = value
    return model


SCORES = {
    "losses": lambda model, rows: score_examples(model, rows, FLOAT32),
    "bald": lambda model, rows: token_uncertainty(model, rows, SPEC, FLOAT32),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", SCORES)
def test_the_token_and_the_module_are_named(name, value):
    rows = examples(6)
    rows[4].input_ids[-3] = 1  # An id that no other example has.
    model = broken_for(tiny_peft(), 1, value)
    with pytest.raises(NonFiniteError) as caught:
        SCORES[name](model, rows)
    # Attention gives the token's NaN to those before it too, because 0 * NaN is NaN.
    position, count = rows[4].positions[0], len(rows[4].positions)
    assert f"{rows[4].example_id}: the " in str(caught.value)
    assert f"of the token at position {position} is nan ({count} of " in str(caught.value)
    assert "first module whose output is not finite is" in str(caught.value)
    assert "embed_tokens (Embedding), whose weight has 32 of 3104 values that are not finite" in str(caught.value)
    SCORES[name](model, [row for row in rows if 1 not in row.input_ids])


def test_texts_are_named_by_their_index():
    tokenizer = tiny_tokenizer()
    texts = ["the cat sat on a mat", "what is 3 plus 4", "seven of nine"]
    ids = [set(tokenizer(text)["input_ids"]) for text in texts]
    own = min(ids[2] - ids[0] - ids[1])
    model = broken_for(tiny_model(vocab=len(tokenizer)), own)
    with pytest.raises(InputError, match=r"^text 2: the (loss|entropy) of the token at position \d+ is nan"):
        score_tokens(model, tokenizer, texts)
    model = broken_for(tiny_peft(vocab=len(tokenizer)), own)
    with pytest.raises(InputError, match=r"^text 2: the predictive_entropy of the token at position \d+ is nan"):
        measure_bald(model, tokenizer, texts, samples=3)


def test_the_output_layer_is_named_if_every_module_is_finite():
    model = tiny_model()
    output_path(model)
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight * 3e38)
    with pytest.raises(NonFiniteError, match=r"all modules are finite, but not the logits of lm_head \(Linear\)"):
        score_examples(model, examples(2), FLOAT32)
