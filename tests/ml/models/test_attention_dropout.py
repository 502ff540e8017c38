"""Dropout of attention probabilities reaches attention and changes nothing else, or the model is refused."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.zoo import tiny_zoo_model
from tests.support.zoo_outcomes import with_adapter
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.attention_dropout import attention_dropout, require_softmax_attention
from tokenuq_ml.models.keyed_masks import KeyedMasks
from tokenuq_ml.scoring.mc_dropout import token_uncertainty

RIGHT = ["llama", "gemma2", "gpt2", "jamba", "deepseek_v32", "deepseek_v3", "qwen3_next", "opt"]
"""Among them sparse attention, whose mask is built for some names of attention only, and two hybrids."""
REFUSED = {
    "gpt_oss": "s_aux",
    "inkling_text": "position_bias",
    "bloom": "not one that transformers can replace",
    "mamba": "not one that transformers can replace",
    "zamba": "no layer number",
    "zamba2": "no layer number",
}


@torch.no_grad()
def logits(model, rate: float | None = None):
    """Logits of a batch: the model's own, or with attention dropout at a rate."""
    batch = collate(examples(3))
    if rate is None:
        return model(**batch.model_inputs, use_cache=False).logits
    masks = KeyedMasks(UncertaintySpec(attention_dropout=rate))
    masks.start_pass(0, [example.example_id for example in batch.examples])
    with attention_dropout(model, masks):
        return model(**batch.model_inputs, use_cache=False).logits


@pytest.mark.parametrize("kind", RIGHT)
def test_it_reaches_attention_and_nothing_else(kind):
    model = tiny_zoo_model(kind)
    require_softmax_attention(model)
    own = logits(model)
    assert (logits(model, 0.0) - own).norm() < 1e-5 * own.norm()
    assert (logits(model, 0.5) - own).norm() > 1e-2 * own.norm()
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_attention_is_refused(kind):
    with pytest.raises(InputError, match=REFUSED[kind]):
        require_softmax_attention(tiny_zoo_model(kind))


def test_bald_asks_first():
    spec = UncertaintySpec(samples=2, attention_dropout=0.1)
    with pytest.raises(InputError, match="attention_dropout to 0"):
        token_uncertainty(with_adapter(tiny_zoo_model("bloom")), examples(1), spec, FLOAT32)
    assert len(token_uncertainty(tiny_peft(), examples(1), spec, FLOAT32))


def test_other_models_keep_their_eager_attention_meanwhile():
    other = tiny_zoo_model("gpt_neox", attn_implementation="eager")
    assert other.config._attn_implementation == "eager"
    own, masks = logits(other), KeyedMasks(UncertaintySpec(attention_dropout=0.5))
    with attention_dropout(tiny_model(), masks):
        assert torch.equal(logits(other), own)
    assert "eager" not in ALL_ATTENTION_FUNCTIONS
