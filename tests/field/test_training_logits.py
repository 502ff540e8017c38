"""Field script 08: what scales, caps or transforms logits, under any name, is part of every loss.

The loss of each model's own forward pass with `labels` is the reference.
"""

import pytest
import torch

from tests.support.tiny_models import FLOAT32
from tests.support.zoo import tiny_zoo_model
from tests.support.zoo_outcomes import assert_near, labelled, one_step, scored_losses, texts
from tokenuq_ml.models.gate import output_path

pytestmark = pytest.mark.slow

TRANSFORMS = {
    "falcon_h1": {"lm_head_multiplier": 0.125},
    "hyperclovax": {"logits_scaling": 0.5},
    "modernbert-decoder": {},
    "recurrent_gemma": {"logits_soft_cap": 0.5},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": {"logits_scaling": 6.0},
    "cohere": {"logit_scale": 0.0625},
    "gemma2": {"final_logit_softcapping": 0.5},
    "xlstm": {"output_logit_soft_cap": 0.5},
    "minicpm3": {"dim_model_base": 8},
    "inkling_text": {"logits_mup_width_multiplier": 5.0},
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_objectives_loss_is_the_models_own(kind):
    model = tiny_zoo_model(kind, **TRANSFORMS[kind])
    with torch.no_grad():
        own = model(**labelled(texts()), use_cache=False).loss
    assert_near(one_step(model).loss, own, "loss of the objective", 2e-6)
    assert_near(scored_losses(model.eval(), FLOAT32)[0].mean(), own, "mean of the scores", 2e-6)


@pytest.mark.parametrize("kind", [kind for kind in TRANSFORMS if TRANSFORMS[kind]])
def test_the_transform_matters_and_costs_no_complete_logits(kind):
    """Each number is found in the configuration, so losses are computed from hidden states."""
    model, without = tiny_zoo_model(kind, **TRANSFORMS[kind]), tiny_zoo_model(kind)
    assert not output_path(model).from_logits
    losses_N = scored_losses(model, FLOAT32)[0]
    assert (losses_N - scored_losses(without, FLOAT32)[0]).norm() > 1e-3 * losses_N.norm()


def test_a_head_with_a_dense_layer_is_run_by_the_model_itself():
    assert output_path(tiny_zoo_model("modernbert-decoder")).from_logits
