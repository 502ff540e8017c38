"""Philox4x64-10: random bits as a function of a key and a counter, the same on every device.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi 10.1145/2063384.2063405. On a CPU the bits come
from `numpy.random.Philox`; on other devices from the same function, in a Triton kernel or in int64 tensor operations,
because PyTorch's own CUDA generator (Philox4x32) adds a launch-dependent offset to its counter and has no CPU
counterpart.

Shapes: B keys, N draws per key.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.fused_random import philox_words
from tokenuq_ml.seeding import philox_bits
from tokenuq_ml.transfers import to_device

DRAWS_PER_BLOCK = 16
"""Draws of sixteen bits in the 256 bits of one counter value."""
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF

Stream = tuple[int, int, int]
"""The upper three of the counter's four words. The lowest word counts blocks from 1, as in numpy."""


def random_draws(keys: Sequence[bytes], stream: Stream, count: int, device: str | torch.device = "cpu") -> Tensor:
    """Return uniform draws of sixteen bits, int16 `[B, count]`; read them as unsigned.

    Args:
        keys: 16 bytes each.
        stream: Which stream of each key.
        count: Draws per key; a larger count begins with the draws of a smaller one.
        device: Where the draws are made and returned.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.from_numpy(numpy_draws(keys, stream, count))
    blocks = -(-count // DRAWS_PER_BLOCK)
    return philox_blocks(keys, stream, blocks, device).view(torch.int16).flatten(1)[:, :count]


def numpy_draws(keys: Sequence[bytes], stream: Stream, count: int) -> np.ndarray:
    """Return the draws of `random_draws` by numpy's generator."""
    draws, words = np.empty((len(keys), count), np.int16), -(-count // 4)
    for row, key in zip(draws, keys, strict=True):
        row[:] = philox_bits(key, stream, words).view("<i2")[:count]
    return draws


def philox_blocks(keys: Sequence[bytes], stream: Stream, blocks: int, device: torch.device) -> Tensor:
    """Return the first `blocks` outputs of each key's stream, int64 `[B, blocks, 4]`, without numpy."""
    key_B2 = to_device(torch.from_numpy(np.stack([np.frombuffer(key, "<i8") for key in keys])), device)
    if backend_of(key_B2).is_fused:
        return philox_words(key_B2, *(_signed(word) for word in stream), blocks)
    zero_BN = torch.zeros(len(keys), blocks, dtype=torch.int64, device=device)
    counter = [zero_BN + torch.arange(1, blocks + 1, device=device), *(zero_BN + _signed(word) for word in stream)]
    return torch.stack(philox(counter, [key_B2[:, :1], key_B2[:, 1:]]), -1)


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Return the four output words of Philox4x64-10.

    Args:
        counter: Four words, int64 tensors of one shape.
        key: Two words, int64, of a shape that broadcasts to the counter's.
    """
    (c0, c1, c2, c3), (key0, key1) = counter, key
    for step in range(_ROUNDS):
        if step:
            key0, key1 = key0 + _signed(_KEY_STEPS[0]), key1 + _signed(_KEY_STEPS[1])
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 64 bits of the unsigned product, by four products of 32 bits."""
    a_low, a_high, b_low, b_high = a & _LOW, _upper(a), b & _LOW, b >> 32
    carry = a_high * b_low + _upper(a_low * b_low)
    middle = (carry & _LOW) + a_low * b_high
    return a_high * b_high + _upper(carry) + _upper(middle), a * _signed(b)


def _upper(a: Tensor) -> Tensor:
    """Return the upper 32 bits as an unsigned number; a signed shift alone would fill with the sign."""
    return (a >> 32) & _LOW


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
