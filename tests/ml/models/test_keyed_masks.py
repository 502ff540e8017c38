"""Keyed masks: their rate, what they depend on, and dropout with them."""

import pytest
import torch
from pydantic import ValidationError

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.models import philox
from tokenuq_ml.models.keyed_masks import KeyedDropout, KeyedMasks, dropped_levels, kept_scale


def keyed(p, mask, features, examples=("a", "b"), layers_before=0):
    masks = KeyedMasks(UncertaintySpec(samples=2, dropout=p, mask=mask))
    for _ in range(layers_before):
        KeyedDropout(features, masks)
    dropout = KeyedDropout(features, masks)
    masks.start_pass(0, list(examples))
    return dropout


def test_one_mask_per_sequence_repeats_over_positions():
    out = keyed(0.5, "sequence", 64)(torch.ones(2, 6, 64))
    assert (out == out[:, :1]).all() and not torch.equal(out[0], out[1])
    assert set(out.unique().tolist()) == {0.0, 2.0}
    x, fresh = torch.ones(2, 6, 64), keyed(0.5, "position", 64)
    assert not (fresh(x) == fresh(x)[:, :1]).all()


@pytest.mark.parametrize("p", [0.1, 0.0005])
@pytest.mark.parametrize("mask", ["sequence", "position"])
def test_masks_drop_at_their_rate(p, mask):
    shape = (2, 400, 501) if mask == "position" else (2, 1, 200_400)
    dropped = (keyed(p, mask, shape[2])(torch.ones(shape)) == 0).double()
    # Five standard errors of a Bernoulli mean.
    assert abs(dropped.mean() - p) < 5 * (p * (1 - p) / dropped.numel()) ** 0.5
    assert dropped.any()


def test_masks_differ_between_layers_samples_examples_and_seeds():
    x, first = torch.ones(2, 40, 101), keyed(0.5, "position", 101)
    out = first(x)
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, keyed(0.5, "position", 101, layers_before=1)(x))
    first.masks.start_pass(1, ["a", "b"])
    assert not torch.equal(out, first(x))
    masks = KeyedMasks(UncertaintySpec(samples=2, dropout=0.5, mask="position", seed=1))
    other = KeyedDropout(101, masks)
    masks.start_pass(0, ["a", "b"])
    assert not torch.equal(out, other(x))


@pytest.mark.parametrize("mask", ["sequence", "position"])
def test_masks_do_not_depend_on_the_batch_or_on_padding(mask):
    x = torch.ones(3, 9, 33)
    together = keyed(0.5, mask, 33, "abc")(x)
    alone = keyed(0.5, mask, 33, "b")(x[:1, :5])
    assert torch.equal(together[1:2, :5], alone)


@pytest.mark.parametrize("mask", ["sequence", "position"])
def test_projecting_equals_dropping_then_multiplying(mask):
    x, a = torch.randn(2, 6, 64), torch.randn(8, 64)
    dropout = keyed(0.3, mask, 64)
    torch.testing.assert_close(dropout.project(x, a, 2.0), 2.0 * dropout(x) @ a.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropping_by_bits_equals_multiplying_by_the_mask(dtype):
    x = torch.randn(2, 6, 64).to(dtype)
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    dropout = keyed(0.3, "sequence", 64)
    kept = dropout.kept(x) != 0
    expected = torch.where(kept, x * dropout.scale, torch.zeros((), dtype=dtype))
    torch.testing.assert_close(dropout(x), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("mask", ["sequence", "position"])
def test_tensor_operations_give_the_masks_of_numpy(mask, monkeypatch):
    x = torch.ones(2, 6, 64)
    expected = keyed(0.3, mask, 64)(x)

    def by_tensors(keys, stream, count):
        return (
            philox.philox_blocks(keys, stream, -(-count // 16), torch.device("cpu"))
            .view(torch.int16)
            .flatten(1)[:, :count]
            .numpy()
        )

    monkeypatch.setattr(philox, "numpy_draws", by_tensors)
    assert torch.equal(keyed(0.3, mask, 64)(x), expected)


def test_the_scale_follows_the_rate_after_rounding():
    assert dropped_levels(0.1) == 6554 and kept_scale(0.1) == 65536 / (65536 - 6554)


@pytest.mark.parametrize("p", [1e-9, 0.9999999])
def test_a_rate_that_rounds_to_nothing_or_everything_is_rejected(p):
    """At 1e-9 all passes would be equal, and BALD and its noise floor 0."""
    with pytest.raises(ValueError, match="drops nothing or everything"):
        dropped_levels(p)
    for field in ("dropout", "attention_dropout"):
        with pytest.raises(ValidationError, match="drops nothing or everything: use 0.0001 to 0.9999"):
            UncertaintySpec(**{field: p})
    assert UncertaintySpec(attention_dropout=0).attention_dropout == 0
