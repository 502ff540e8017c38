"""Random words of Philox4x64-10 in one launch; `models/philox.py` has the generator, and what it is for.

Shapes: B keys.
"""

import torch
from torch import Tensor

from tokenuq_ml.kernels.launching import launch

_BLOCK = 256
"""Counters of a program."""


@torch.library.custom_op("tokenuq::philox_words", mutates_args=())
def philox_words(key_B2: Tensor, word_1: int, word_2: int, word_3: int, blocks: int) -> Tensor:
    """Return the first `blocks` outputs of each key's stream, int64 `[B, blocks, 4]`.

    Args:
        key_B2: int64, on the device of the words.
        word_1: second word of the counter, as a signed number; the lowest one counts from 1.
        word_2: third word.
        word_3: fourth word.
        blocks: how many outputs of four words.
    """
    words = key_B2.new_empty(len(key_B2), blocks, 4)
    grid = (len(key_B2), -(-blocks // _BLOCK))
    launch("philox_words", grid, key_B2, (words, key_B2, word_1, word_2, word_3, blocks), {"BLOCK": _BLOCK})
    return words


@philox_words.register_fake
def _(key_B2: Tensor, word_1: int, word_2: int, word_3: int, blocks: int) -> Tensor:
    return key_B2.new_empty(len(key_B2), blocks, 4)
