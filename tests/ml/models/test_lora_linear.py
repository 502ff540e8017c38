"""The fused LoRA layer equals PEFT's layer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.models.lora_dropout import BitMaskDropout, use_bit_mask_dropout
from tokenuq_ml.models.lora_linear import FusedLoraLinear, add_projection, scaled, use_fused_lora


class Net(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.layer = Conv1D(20, 12) if bias == "conv1d" else nn.Linear(12, 20, bias=bias)
        if bias == "conv1d":
            nn.init.normal_(self.layer.bias)

    def forward(self, x):
        return self.layer(x)


def layers(bias=False, dropout=0.0, dtype=torch.float64, **config):
    """Return PEFT's layer, and the fused layer with the same weights."""
    made = []
    for fuse in (False, True):
        torch.manual_seed(0)
        config |= {"fan_in_fan_out": bias == "conv1d"}
        model = get_peft_model(
            Net(bias), LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["layer"], **config)
        )
        model = use_bit_mask_dropout(model.to(dtype)).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        made.append(use_fused_lora(model) if fuse else model)
    return made


def outcome(model, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = model(x)
    (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return y.detach(), x.grad, grads


@pytest.mark.parametrize("bias", [False, True, "conv1d"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_values_and_gradients_equal_those_of_peft(bias, dropout, monkeypatch):
    """Both draw the same masks. `Conv1D` of GPT-2 is a linear layer with a transposed weight."""
    plain, fused = layers(bias, dropout)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    expected = outcome(plain, x)
    monkeypatch.setattr(LoraLinear, "forward", lambda *_, **__: pytest.fail("left to PEFT"))
    got = outcome(fused, x)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(got[0], expected[0], **tolerance)
    torch.testing.assert_close(got[1], expected[1], **tolerance)
    assert set(got[2]) == set(expected[2]) and len(got[2]) == 2
    for name, grad in expected[2].items():
        torch.testing.assert_close(got[2][name], grad, **tolerance)


@pytest.mark.parametrize("bias", [False, True, "conv1d"])
def test_values_without_a_gradient_equal_those_of_peft(bias):
    plain, fused = (model.eval() for model in layers(bias, 0.4))
    x, residual = torch.randn(3, 5, 12, dtype=torch.float64), torch.randn(3, 5, 20, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
        onto = add_projection(residual, fused.base_model.model.layer, x)
        torch.testing.assert_close(onto, residual + plain(x), rtol=1e-9, atol=1e-9)


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    plain, fused = layers(dtype=torch.float32)
    for model in (plain, fused):
        model.base_model.model.layer.base_layer.to(torch.bfloat16)
    x = torch.randn(3, 5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = outcome(plain, x), outcome(fused, x)
    assert got[0].dtype == torch.bfloat16 and all(grad.dtype == torch.float32 for grad in got[2].values())
    torch.testing.assert_close(got[0], expected[0], rtol=0.03, atol=0.05)
    for name, grad in expected[2].items():
        assert (got[2][name] - grad).norm() < 0.02 * grad.norm()


@pytest.mark.parametrize("case", ["disabled", "merged", "two adapters", "dora", "trained base"])
def test_other_cases_than_plain_lora_run_the_forward_pass_of_peft(case, monkeypatch):
    plain, fused = layers(use_dora=case == "dora", dtype=torch.float32)
    called = []
    original = LoraLinear.forward
    monkeypatch.setattr(LoraLinear, "forward", lambda self, *a, **k: called.append(1) or original(self, *a, **k))
    for model in (plain, fused):
        if case == "merged":
            model.merge_adapter()
        if case == "two adapters":
            model.add_adapter("other", LoraConfig(r=4, target_modules=["layer"]))
            model.base_model.set_adapter(["default", "other"])
        if case == "trained base":
            model.base_model.model.layer.base_layer.weight.requires_grad_()
    x = torch.randn(2, 12)
    if case == "disabled":
        with plain.disable_adapter(), fused.disable_adapter():
            torch.testing.assert_close(fused(x), plain(x))
    else:
        torch.testing.assert_close(fused(x), plain(x))
    assert len(called) == 2


WIDTHS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("to", WIDTHS, ids=str)
@pytest.mark.parametrize("of", WIDTHS, ids=str)
def test_a_matrix_is_scaled_in_the_wider_dtype(of, to):
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).to(of)
    wide = of if of.itemsize >= to.itemsize else to
    factor = 2 / 0.9
    found = scaled(x, factor, to)
    assert found.dtype == to
    rounding = torch.finfo(wide).eps + torch.finfo(to).eps
    torch.testing.assert_close(found.double(), x.double() * factor, rtol=rounding, atol=0)
    # As by two operations, bit by bit.
    if to in (torch.bfloat16, torch.float32) and of in (torch.bfloat16, torch.float32):
        assert torch.equal(found, (x * factor).to(to) if of.itemsize > to.itemsize else x.to(to) * factor)


def test_layers_change_in_place_and_keep_their_state():
    plain, fused = layers(dropout=0.1)
    assert type(fused.base_model.model.layer) is FusedLoraLinear and isinstance(
        fused.base_model.model.layer, LoraLinear
    )
    assert isinstance(fused.base_model.model.layer.lora_dropout["default"], BitMaskDropout)
    assert list(fused.state_dict()) == list(plain.state_dict())
