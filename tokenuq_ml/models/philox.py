"""Philox4x64-10: random bits that are a function of a key and a counter, the same on every device.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi 10.1145/2063384.2063405. On a CPU the bits come
from `numpy.random.Philox`; elsewhere from the same function written in int64 tensor operations, because PyTorch's own
CUDA generator (Philox4x32) hides its counter behind a launch-dependent offset and has no CPU counterpart. Does not know
what the bits are used for.

Shapes: B keys, N draws of each.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml.seeding import philox_bits

DRAWS_PER_BLOCK = 16
"""Draws of sixteen bits in the 256 bits that one counter gives."""
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF


def random_draws(
    keys: Sequence[bytes], stream: tuple[int, int, int], count: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Return uniform draws of sixteen bits, int16 `[B, count]`; read them as unsigned.

    Args:
        keys: 16 bytes each.
        stream: The upper three of the counter's four words. The lowest counts blocks from 1, as numpy does.
        count: Draws per key; a larger count begins with the draws of a smaller one.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.from_numpy(_on_cpu(keys, stream, count))
    blocks = -(-count // DRAWS_PER_BLOCK)
    return philox_blocks(keys, stream, blocks, device).view(torch.int16).flatten(1)[:, :count]


def _on_cpu(keys: Sequence[bytes], stream: tuple[int, int, int], count: int) -> np.ndarray:
    draws, words = np.empty((len(keys), count), np.int16), -(-count // 4)
    for row, key in zip(draws, keys, strict=True):
        row[:] = philox_bits(key, stream, words).view("<i2")[:count]
    return draws


def philox_blocks(keys: Sequence[bytes], stream: tuple[int, int, int], blocks: int, device: torch.device) -> Tensor:
    """Return the first `blocks` outputs of each key's stream, int64 `[B, blocks, 4]`, in tensor operations."""
    key_B2 = torch.from_numpy(np.stack([np.frombuffer(key, "<i8") for key in keys])).to(device)
    zero_BN = torch.zeros(len(keys), blocks, dtype=torch.int64, device=device)
    counter = [zero_BN + torch.arange(1, blocks + 1, device=device), *(zero_BN + _signed(word) for word in stream)]
    return torch.stack(philox(counter, [key_B2[:, :1], key_B2[:, 1:]]), -1)


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Return the four output words of Philox4x64-10 for four counter and two key words, int64 of one shape."""
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
    carried = a_high * b_low + _upper(a_low * b_low)
    middle = (carried & _LOW) + a_low * b_high
    return a_high * b_high + _upper(carried) + _upper(middle), a * _signed(b)


def _upper(a: Tensor) -> Tensor:
    """Return the upper 32 bits, unsigned: a signed shift fills with the sign."""
    return (a >> 32) & _LOW


def _signed(word: int) -> int:
    """Return the int64 of the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
