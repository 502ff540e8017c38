"""Monte-Carlo dropout of models without an adapter."""

import pytest
import torch
from torch import nn

from tests.support.tiny_models import FLOAT32, examples, tiny_model
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.own_dropout import dropouts_of_features
from tokenuq_ml.scoring.bald_reference import float64_uncertainty
from tokenuq_ml.scoring.mc_dropout import token_uncertainty

TRAIN = examples(4)
SPEC = UncertaintySpec(samples=3, dropout=0.2)


def bald(model, rows=TRAIN, **options):
    found = token_uncertainty(model, rows, SPEC.model_copy(update=options), FLOAT32)
    return found.sort("example_id", "position")["bald"].to_numpy()


def test_dropouts_of_features_are_found_and_those_of_attention_are_not():
    model = tiny_model("gpt2")
    model.set_attn_implementation("eager")
    found = dropouts_of_features(model)
    assert set(found.values()) == {32} and "transformer.drop" in found
    assert len(found) == 1 + 2 * 2 and not any("attn_dropout" in path for path in found)
    assert dropouts_of_features(tiny_model("llama")) == {}


@pytest.mark.parametrize("mask", ["sequence", pytest.param("position", marks=pytest.mark.heavy)])
def test_bald_of_a_model_with_dropout_does_not_depend_on_batches_and_has_a_float64_reference(mask):
    model = tiny_model("gpt2")
    before = dict(model.named_modules())
    together = bald(model, mask=mask)
    alone = [value for one in sorted(TRAIN, key=lambda one: one.example_id) for value in bald(model, [one], mask=mask)]
    assert together.max() > 1e-3 and together == pytest.approx(alone, rel=1e-3, abs=1e-6)
    reference = float64_uncertainty(model, TRAIN, SPEC.model_copy(update={"mask": mask}))
    assert together == pytest.approx(reference.sort("example_id", "position")["bald"].to_numpy(), rel=1e-3, abs=1e-6)
    assert dict(model.named_modules()) == before and isinstance(model.transformer.drop, nn.Dropout)


def test_the_rate_is_that_of_the_study_whatever_the_configuration_says():
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert bald(model) == pytest.approx(bald(tiny_model("gpt2")), rel=1e-6)


def test_a_model_without_dropout_is_sampled_by_attention_or_refused():
    model = tiny_model("llama")
    assert bald(model, attention_dropout=0.2).max() > 1e-3
    with pytest.raises(InputError, match="LlamaForCausalLM has none, so it would be 0 everywhere; set `attention_dro"):
        bald(model)
    assert torch.is_grad_enabled()
