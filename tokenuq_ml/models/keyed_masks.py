"""Dropout masks that are a function of (seed, example, sample, layer), and LoRA dropout with such masks.

The bits are Philox's (`philox.py`). They do not depend on the device, on how examples are batched, or on other draws.

Shapes: B sequences, T positions, I input features of a layer, F input features of all layers, r rank.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenuq_ml.config.mask_levels import MASK_LEVELS, dropped_levels
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.lora_dropout import apply_mask
from tokenuq_ml.models.philox import random_draws
from tokenuq_ml.seeding import example_key

if TYPE_CHECKING:
    from tokenuq_ml.config import UncertaintySpec

_FEATURES, _ATTENTION = 0, 1
"""Last word of a stream's counter: what the mask drops."""


def kept_scale(p: float) -> float:
    """Return the factor that preserves the mean at the rate at which masks really drop."""
    return MASK_LEVELS / (MASK_LEVELS - dropped_levels(p))


class KeyedMasks:
    """The masks of a set of forward passes.

    Each thread calls `start_pass` before each of its forward passes and then gets the masks of that pass.

    Args:
        spec: Dropout rates, kind of mask and seed.
        device: Where masks are drawn.
    """

    def __init__(self, spec: UncertaintySpec, device: str | torch.device = "cpu"):
        self.spec, self.device = spec, torch.device(device)
        self.layers, self.features = 0, 0
        self._pass = threading.local()

    def add_layer(self, features: int) -> tuple[int, slice]:
        """Register a layer; return its number, and its slice of the input features of all layers."""
        self.layers, self.features = self.layers + 1, self.features + features
        return self.layers, slice(self.features - features, self.features)

    def start_pass(self, sample: int, example_ids: list[str]) -> None:
        """Set the sample and the examples of the calling thread's next forward pass."""
        self._pass.sample = sample
        self._pass.keys = [example_key(self.spec.seed, example_id) for example_id in example_ids]
        self._pass.positions = None
        if self.spec.mask == "sequence" and self.features:
            # All layers at once: one generator per layer would cost more than its few draws.
            self._pass.kept_B1F = self._kept((0, sample, _FEATURES), self.spec.dropout, self.features)[:, None]

    def by_example(self, x: Tensor) -> Tensor:
        """Return a layer's input as `[B, T, I]`: some layers get all tokens in one row, or several rows per token.

        Raises:
            InputError: the rows are not those of the pass in its order, as inside an expert that gets some tokens.
        """
        examples, masks = len(self._pass.keys), self._pass
        if x.dim() == 3 and x.shape[0] == examples:
            masks.positions = masks.positions or x.shape[1]
            return x
        whole_pass = x.dim() == 2 and masks.positions is not None and x.shape[0] == examples * masks.positions
        if whole_pass or x.shape[0] == examples:
            return x.reshape(examples, -1, x.shape[-1])
        raise InputError(
            f"an adapted layer gets an input of the shape {list(x.shape)} for {examples} examples, so its dropout "
            "masks cannot be drawn by example, as in an expert that gets some of the tokens; leave the layer out of "
            "the adapter's target_modules"
        )

    def per_sequence(self, features: slice) -> Tensor:
        """Return int16 `[B, 1, I]`, all ones where kept, for the layer with these input features."""
        return self._pass.kept_B1F[:, :, features]

    def per_position(self, layer: int, positions: int, features: int) -> Tensor:
        """Return int16 `[B, T, I]`, all ones where kept; more positions extend the mask without changing its start."""
        kept_BN = self._kept((layer, self._pass.sample, _FEATURES), self.spec.dropout, positions * features)
        return kept_BN.unflatten(1, (positions, features))

    def for_attention(self, layer: int, head: int, count: int) -> Tensor:
        """Return int16 `[B, count]`, all ones where kept, for the attention probabilities of one head."""
        stream = (layer << 32 | head, self._pass.sample, _ATTENTION)
        return self._kept(stream, self.spec.attention_dropout, count)

    def _kept(self, stream: tuple[int, int, int], p: float, count: int) -> Tensor:
        draws = random_draws(self._pass.keys, stream, count, self.device)
        # Flipping the sign bit maps the order of unsigned numbers to that of signed ones.
        kept = draws.bitwise_xor_(-(2**15)) >= dropped_levels(p) - 2**15
        return kept.to(torch.int16).neg_()


class KeyedDropout(nn.Module):
    """LoRA dropout by keyed masks.

    `mask="sequence"` drops the same features at every position of an example: one sample of the adapter's weights, as
    the theory requires (Gal and Ghahramani 2016, arXiv 1506.02142). `mask="position"` draws per position.

    Args:
        features: Input features of the layer.
        masks: The masks of all layers; the layer registers itself there.
    """

    def __init__(self, features: int, masks: KeyedMasks):
        super().__init__()
        self.masks, self.scale = masks, kept_scale(masks.spec.dropout)
        self.layer, self.features = masks.add_layer(features)

    def kept(self, x_BTI: Tensor) -> Tensor:
        """Return int16 `[B, 1 or T, I]`, all ones where kept."""
        if self.masks.spec.mask == "sequence":
            kept = self.masks.per_sequence(self.features)
        else:
            kept = self.masks.per_position(self.layer, x_BTI.shape[1], x_BTI.shape[2])
        # A model may be spread over devices; masks are drawn on its first one.
        return kept.to(x_BTI.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with features dropped and the others scaled."""
        x_BTI = self.masks.by_example(x)
        return (apply_mask(x_BTI, self.kept(x_BTI)) * self.scale).reshape(x.shape)

    def project(self, x: Tensor, a_rI: Tensor, scaling: float) -> Tensor:
        """Return `scaling * dropout(x) @ a.T`, `[B, T, r]`; scales the small product, not the input."""
        x_BTI = self.masks.by_example(x)
        return (apply_mask(x_BTI, self.kept(x_BTI)) @ a_rI.to(x_BTI.dtype).T).mul_(self.scale * scaling)
