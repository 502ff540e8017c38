"""Load base models and tokenizers from the folders that `conversion.py` writes."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from tokenuq_ml.models.numerics import Numerics, resolve_numerics

hf_logging.disable_progress_bar()


def load_tokenizer(folder: str | Path):
    """The tokenizer that `convert` wrote."""
    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: str | Path, precision: str = "auto") -> tuple[PreTrainedModel, Numerics]:
    """The base model, frozen and in eval mode, in the resolved dtype on the resolved device."""
    numerics = resolve_numerics(precision)
    # Probabilities far below float32's normal range would slow every softmax many times over.
    torch.set_flush_denormal(True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=numerics.dtype)
    model.requires_grad_(False)
    return model.to(numerics.device).eval(), numerics
