"""Dropout masks that are a function of (seed, example, sample, layer), and LoRA's dropout by such masks.

The bits are Philox's (`philox.py`). They do not depend on the device, on how examples are batched or on what else was
drawn. Does not know what is computed under the masks.

Shapes: B sequences, T positions, I input features of a layer, F those of all layers, r rank.
"""

import threading

import torch
from torch import Tensor, nn

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.config.study import MASK_LEVELS
from tokenuq_ml.models.lora_dropout import apply_mask
from tokenuq_ml.models.philox import random_draws
from tokenuq_ml.seeding import example_key

_FEATURES, _ATTENTION = 0, 1
"""What a stream is for: the last word of its counter."""


def dropped_levels(p: float) -> int:
    """Return how many of the `MASK_LEVELS` equally likely draws are dropped.

    Raises:
        ValueError: `p` rounds to 0, so that all passes would be equal and BALD 0.
    """
    levels = round(p * MASK_LEVELS)
    if not 0 < levels < MASK_LEVELS:
        raise ValueError(f"dropout {p:g} drops nothing or everything: masks have steps of 1/{MASK_LEVELS}")
    return levels


def kept_scale(p: float) -> float:
    """Return the factor that keeps the mean, for the rate at which masks really drop."""
    return MASK_LEVELS / (MASK_LEVELS - dropped_levels(p))


class KeyedMasks:
    """Draws the masks of one set of passes.

    Each thread says with `start_pass` which sample of which examples its next forward pass is.
    """

    def __init__(self, spec: UncertaintySpec, device: str | torch.device = "cpu"):
        self.spec, self.device = spec, torch.device(device)
        self.layers, self.features = 0, 0
        self._own = threading.local()

    def add(self, features: int) -> tuple[int, slice]:
        """Register a layer; return its number, and where its input features are among those of all layers."""
        self.layers, self.features = self.layers + 1, self.features + features
        return self.layers, slice(self.features - features, self.features)

    def start_pass(self, sample: int, example_ids: list[str]) -> None:
        """Set whose masks the calling thread's next forward pass gets."""
        self._own.sample, self._own.example_ids = sample, example_ids
        self._own.keys = [example_key(self.spec.seed, example_id) for example_id in example_ids]
        if self.spec.mask == "sequence" and self.features:
            # All layers at once: a generator per layer costs more than its few draws.
            self._own.kept_B1F = self._kept((0, sample, _FEATURES), self.spec.dropout, self.features)[:, None]

    def sequence_mask(self, features: slice) -> Tensor:
        """Return int16 `[B, 1, I]`, all ones where kept, for the layer with these input features."""
        return self._own.kept_B1F[:, :, features]

    def position_mask(self, layer: int, positions: int, features: int) -> Tensor:
        """Return int16 `[B, T, I]`, all ones where kept; more positions add to the end and change nothing before."""
        kept_BN = self._kept((layer, self._own.sample, _FEATURES), self.spec.dropout, positions * features)
        return kept_BN.unflatten(1, (positions, features))

    def attention_mask_draws(self, layer: int, head: int, count: int) -> Tensor:
        """Return int16 `[B, count]`, all ones where kept, for the probabilities of one head."""
        stream = (layer << 32 | head, self._own.sample, _ATTENTION)
        return self._kept(stream, self.spec.attention_dropout, count)

    def _kept(self, stream: tuple[int, int, int], p: float, count: int) -> Tensor:
        draws = random_draws(self._own.keys, stream, count, self.device)
        # Flipping the sign turns the order of unsigned numbers into that of signed ones.
        kept = draws.bitwise_xor_(-(2**15)) >= dropped_levels(p) - 2**15
        return kept.to(torch.int16).neg_()


class KeyedDropout(nn.Module):
    """LoRA's dropout by keyed masks.

    `mask="sequence"` drops the same features at every position of an example: one sample of the adapter's weights, as
    the theory asks (Gal and Ghahramani 2016, arXiv 1506.02142). `mask="position"` draws for each position.
    """

    def __init__(self, features: int, masks: KeyedMasks):
        super().__init__()
        self.masks, self.scale = masks, kept_scale(masks.spec.dropout)
        self.layer, self.features = masks.add(features)

    def kept(self, x_BTI: Tensor) -> Tensor:
        """Return int16 `[B, 1 or T, I]`, all ones where kept."""
        if self.masks.spec.mask == "sequence":
            kept = self.masks.sequence_mask(self.features)
        else:
            kept = self.masks.position_mask(self.layer, x_BTI.shape[1], x_BTI.shape[2])
        # A model may be spread over devices; masks are drawn on its first one.
        return kept.to(x_BTI.device)

    def forward(self, x_BTI: Tensor) -> Tensor:
        return apply_mask(x_BTI, self.kept(x_BTI)) * self.scale

    def project(self, x_BTI: Tensor, a_rI: Tensor, scaling: float) -> Tensor:
        """Return `scaling * dropout(x) @ a.T`; the small product is scaled, not the input."""
        return (apply_mask(x_BTI, self.kept(x_BTI)) @ a_rI.to(x_BTI.dtype).T).mul_(self.scale * scaling)
