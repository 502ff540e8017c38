"""Loading a converted model in a precision."""

import torch

from tests.support.model_folders import folder_model
from tests.support.tiny_models import examples
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring.token_losses import score_examples


def test_bfloat16_moves_token_losses_by_hundredths_of_a_nat(tmp_path):
    folder_model(tmp_path)
    losses = {}
    for precision in ("float32", "bfloat16"):
        model, numerics = load_model(tmp_path, precision)
        assert model.dtype == getattr(torch, precision)
        losses[precision] = score_examples(model, examples(6), numerics)["loss"]
    difference = (losses["float32"] - losses["bfloat16"]).abs()
    assert difference.mean() < 0.05 and difference.max() < 0.3
