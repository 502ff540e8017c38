"""Which adapters vLLM takes: plain LoRA up to a rank, scaled by one alpha, with nothing trained besides.

By vLLM's own check of adapters (`PEFTHelper`) in version 0.11 and later. Does not import torch.
"""

from collections.abc import Mapping
from typing import Any

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM allows for `max_lora_rank`."""
_NOT_READ = ("rank_pattern", "alpha_pattern", "alora_invocation_tokens", "trainable_token_indices", "layer_replication")
"""Settings of PEFT that change what an adapter computes, and that vLLM does not read."""


def why_not_served(settings: Mapping[str, Any]) -> str | None:
    """Return why vLLM does not take an adapter; None if it does.

    Args:
        settings: the content of its `adapter_config.json`.
    """
    if settings.get("peft_type") != "LORA":
        return f"its kind is {settings.get('peft_type')}, and vLLM applies LoRA"
    if settings.get("use_dora"):
        return "it is DoRA (use_dora)"
    if settings.get("modules_to_save"):
        return f"it holds complete modules (modules_to_save: {', '.join(settings['modules_to_save'])})"
    if settings.get("bias", "none") != "none":
        return f"it trains biases (bias: {settings['bias']})"
    for key in _NOT_READ:
        if settings.get(key):
            return f"it sets {key}, which vLLM does not read"
    if settings["r"] > RANKS[-1]:
        return f"its rank is {settings['r']}, and {RANKS[-1]} is the largest"
    return None
