"""Packed projections have the bits of the layers themselves, or are the layers themselves."""

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.models import packed_projections
from tokenuq_ml.models.packed_projections import Projections, fits_twice

ROWS = torch.randn(7, 32, generator=torch.Generator().manual_seed(3))
NARROW = ROWS.to(torch.bfloat16)
packs = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no products in bfloat16 on this processor",
)


def attention(model):
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [getattr(own.model.layers[1].self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]


def equal(layers, projections) -> bool:
    return all(torch.equal(y, layer(NARROW)) for y, layer in zip(projections(NARROW), layers, strict=True))


@packs
@torch.no_grad()
def test_plain_layers_and_layers_with_an_adapter_are_one_product():
    for model in (tiny_model(), tiny_peft()):
        layers = attention(model.to(torch.bfloat16))
        projections = Projections(layers, pack=True)
        assert projections.packs(NARROW) and equal(layers, projections)


@packs
@torch.no_grad()
def test_layers_of_which_one_has_an_adapter_and_biases():
    adapted, plain = attention(tiny_peft().to(torch.bfloat16)), attention(tiny_model().to(torch.bfloat16))
    layers = [plain[0], adapted[1], plain[2]]
    projections = Projections(layers, pack=True)
    assert projections.packs(NARROW) and equal(layers, projections)
    biased = [torch.nn.Linear(32, width, dtype=torch.bfloat16) for width in (16, 8)]
    projections = Projections(biased, pack=True)
    assert projections.packs(NARROW) and equal(biased, projections)


@packs
@torch.no_grad()
def test_a_disabled_adapter_takes_no_part():
    model = tiny_peft().to(torch.bfloat16)
    layers = attention(model)
    enabled = [layer(NARROW) for layer in layers]
    with model.disable_adapter():
        projections = Projections(layers, pack=True)
        assert projections.packs(NARROW) and equal(layers, projections)
        assert not torch.equal(projections(NARROW)[0], enabled[0])


def halved(layer):
    plain = layer.forward
    layer.forward = lambda x: plain(x) / 2


LEFT = {
    "float32": lambda layers: [layer.float() for layer in layers],
    "a hook": lambda layers: layers[1].register_forward_hook(lambda _, __, y: y * 3),
    "a hook on the layer under the adapter": lambda layers: layers[1].base_layer.register_forward_hook(
        lambda _, __, y: y * 3
    ),
    "another forward pass": lambda layers: halved(layers[0]),
    "dropout": lambda layers: [layer.train() for layer in layers],
    "two scalings": lambda layers: layers[0].scaling.update(default=3.0),
}


@pytest.mark.parametrize("change", LEFT)
@torch.no_grad()
def test_other_layers_are_called(change):
    layers = attention(tiny_peft(dropout=0.5).to(torch.bfloat16).eval())
    LEFT[change](layers)
    projections = Projections(layers, pack=True)
    assert not projections.packs(NARROW)
    if change not in ("float32", "dropout"):
        assert equal(layers, projections)


@packs
@torch.no_grad()
def test_products_with_other_bits_are_not_used(monkeypatch):
    real = packed_projections._product
    monkeypatch.setattr(packed_projections, "_product", lambda *args: real(*args) * 1.01)
    layers = attention(tiny_model().to(torch.bfloat16))
    projections = Projections(layers, pack=True)
    assert not projections.packs(NARROW) and equal(layers, projections)


def test_weights_that_would_fill_the_memory_are_not_stored_twice(monkeypatch):
    model = tiny_model()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    for memory, fits in ((9 * size, True), (7 * size, False)):
        limit = packed_projections.limits_of()[0].__class__(memory, "of this test")
        monkeypatch.setattr(packed_projections, "limits_of", lambda limit=limit: [limit])
        assert fits_twice(model) is fits


@torch.no_grad()
def test_a_release_without_the_operators_calls_the_layers(monkeypatch):
    monkeypatch.setattr(packed_projections, "NEEDED", (*packed_projections.NEEDED, "_of_a_later_release"))
    layers = attention(tiny_model().to(torch.bfloat16))
    projections = Projections(layers, pack=True)
    assert not projections.packs(NARROW) and equal(layers, projections)
