"""Keys of a study that decide how its base model is loaded, and their values. Does not import torch or pydantic."""

from typing import Literal

BASE_KEYS = ("attention", "quantization")
"""Keys that decide how the base model of a study is loaded, besides its precision; none of them has to be given."""
Attention = Literal["auto", "sdpa", "flash_attention_2", "flex", "eager"]
"""Implementations of attention in transformers; `auto` is what transformers chooses for the model."""
NARROW_ATTENTION: tuple[Attention, ...] = ("flex", "flash_attention_2")
"""Used in 16 bits only: flash attention has no other kernels, and flex attention none in float64."""
Quantization = Literal["nf4", "int8"]
"""Of bitsandbytes: 4-bit normal floats with quantised scales (arXiv 2305.14314), or LLM.int8 (arXiv 2208.07339)."""
