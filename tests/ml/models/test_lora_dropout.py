"""Bit-mask dropout follows the definition of dropout."""

import pytest
import torch
from torch import nn

from tests.support.tiny_models import tiny_peft
from tokenuq_ml.models.lora_dropout import BitMaskDropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_elements_are_dropped_independently_at_the_rate_and_scaled(p):
    torch.manual_seed(0)
    x = torch.ones(400, 501)
    y = BitMaskDropout(p)(x)
    dropped = (y == 0).float()
    # Five standard errors of a Bernoulli mean.
    assert abs(dropped.mean() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p)), rtol=1e-4)
    for shift in (1, 2, 3, 4):
        flat = dropped.flatten() - p
        covariance = (flat[shift:] * flat[:-shift]).mean()
        assert abs(covariance) < 5 * p * (1 - p) / x.numel() ** 0.5


def test_gradients_pass_where_values_do():
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    y = BitMaskDropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, y / x).detach())


def test_eval_mode_is_the_identity_and_the_generator_state_repeats_masks():
    x = torch.randn(3, 4)
    assert BitMaskDropout(0.5).eval()(x) is x
    dropout = BitMaskDropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first) and torch.equal(torch.get_rng_state(), state)


def test_adapters_use_it_and_store_their_rate(tmp_path):
    model = tiny_peft(dropout=0.2)
    assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    assert {m.p for m in model.modules() if isinstance(m, BitMaskDropout)} == {0.2}
    model.save_pretrained(tmp_path)
    assert '"lora_dropout": 0.2' in (tmp_path / "adapter_config.json").read_text()
