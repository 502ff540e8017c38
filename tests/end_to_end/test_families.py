"""The most used families are right in float64 and bfloat16, with and without an adapter that PEFT made.

Each as a tiny random model. Scores run through the fast forward passes, and are compared with plain ones.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.support.tiny_models import FLOAT32
from tests.support.zoo import tiny_zoo_model
from tests.support.zoo_outcomes import check_objective, check_scores, plain_losses, scored_losses, texts
from tokenuq_ml.models.numerics import Numerics

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"),
    *("olmo2", "granite", "cohere"),
)
FAST = ("llama", "gemma3_text", "gpt2")
SLOW = ("qwen3", "gemma2", "granite", "gpt_neox")
"""Those that `make test` adds; `make test-heavy` runs all."""
FLOAT64 = Numerics("cpu", torch.float64, 1, "test")
BFLOAT16 = Numerics("cpu", torch.bfloat16, 1, "test")
EACH = [
    pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow if kind in SLOW else pytest.mark.heavy)
    for kind in FAMILIES
]

pytestmark = pytest.mark.parametrize("adapter", ["no adapter", "peft"])


def family_model(kind: str, adapter: str):
    model = tiny_zoo_model(kind)
    if adapter == "peft":
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).eval()
    return model


@pytest.mark.parametrize("kind", EACH)
def test_float32(kind, adapter):
    check_scores(family_model(kind, adapter), FLOAT32)
    check_objective(family_model(kind, adapter))


@pytest.mark.parametrize("kind", [param for param in EACH if param.values[0] != "gemma2"])
def test_float64(kind, adapter):
    """Tables hold float32. Norms and softmax are float32 inside some models, which bounds their gradients.

    Gemma-2 gives NaN for a padded batch in float64 with an attention mask, in plain transformers too.
    """
    check_scores(family_model(kind, adapter).double(), FLOAT64, 1e-7)
    check_objective(family_model(kind, adapter).double(), 1e-7)


@pytest.mark.parametrize("kind", EACH)
def test_bfloat16_is_as_near_to_float32_as_transformers_is(kind, adapter):
    """Float32 of the same weights is the reference."""
    model = family_model(kind, adapter).to(torch.bfloat16)
    exact_N = plain(family_model(kind, adapter).to(torch.bfloat16).float())
    ours, plains = scored_losses(model, BFLOAT16)[0] - exact_N, plain(model) - exact_N
    assert 0 < ours.abs().mean() <= 1.5 * plains.abs().mean()


@torch.no_grad()
def plain(model) -> torch.Tensor:
    return torch.cat([plain_losses(model, text)[0] for text in texts()])
