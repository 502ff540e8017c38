"""The models that are measured: random weights of published shapes, made on the device, and one batch of tokens.

Shapes: B sequences, T positions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.accelerator.specs import LORA
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.models.adapters import add_adapter, lora_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Sizes of Llama-3.2-1B, as in its `config.json`."""
GEMMA = {
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
"""Sizes of Gemma-2-2B, whose logits are soft-capped."""
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
END_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""In every vocabulary, the smallest included."""


@dataclass(frozen=True)
class Shape:
    """A model and a batch. The first half of each sequence is the prompt, the second half the response."""

    name: str
    config: dict[str, Any]
    sequences: int = 16
    length: int = 512

    @property
    def architecture(self) -> Architecture:
        """The sizes that decide the matrix products."""
        return Architecture.from_config(self.config)

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.sequences * self.length

    @property
    def response_tokens(self) -> int:
        """Response tokens of the batch (N)."""
        return self.sequences * (self.length // 2)

    @property
    def soft_caps(self) -> bool:
        """Whether the head soft-caps its logits, so that no mean embeddings exist."""
        return self.config.get("final_logit_softcapping") is not None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.2-1b", LLAMA),
        Shape("gemma-2-2b", GEMMA),
        Shape("tiny-llama", LLAMA | TINY, sequences=4, length=16),
        Shape("tiny-gemma", GEMMA | TINY | {"query_pre_attn_scalar": 8, "sliding_window": 16}, sequences=4, length=16),
    )
}
GROUPS = {"published": ("llama-3.2-1b", "gemma-2-2b"), "tiny": ("tiny-llama", "tiny-gemma")}
"""Names of several shapes, for the command line."""


@dataclass(frozen=True)
class Setting:
    """What a contestant gets."""

    shape: Shape
    device: torch.device
    dtype: torch.dtype
    """Of the base model."""
    folder: Path
    """For whatever it writes."""


def base_model(setting: Setting) -> PreTrainedModel:
    """Return a frozen model with random weights, made on the device."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**setting.shape.config, **END_IDS)
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    return model.requires_grad_(False).eval()


def own_model(setting: Setting) -> PeftModel:
    """Return the model with an adapter as a study trains it: fused layers, dropout by bits."""
    return randomised(add_adapter(base_model(setting), LORA, seed=0))


def peers_model(setting: Setting) -> PeftModel:
    """Return the model with the same adapter as PEFT makes it."""
    return randomised(get_peft_model(base_model(setting), lora_config(LORA)))


@torch.no_grad()
def randomised(model: PeftModel) -> PeftModel:
    """Set the adapter's B matrices to small random values, like those of a trained adapter; return the model."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.01)
    return model


def random_rows(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return `input_ids_BT` and `labels_BT` of the batch, on the CPU; labels of the prompt are -100."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(
        len(END_IDS), shape.config["vocab_size"], (shape.sequences, shape.length), generator=generator
    )
    labels_BT = ids_BT.clone()
    labels_BT[:, : shape.length - shape.length // 2] = -100
    return ids_BT, labels_BT
