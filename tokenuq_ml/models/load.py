"""Load base models and tokenizers from the folders that `conversion.py` writes."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from tokenuq_ml.models.attention import attention_name, check_attention, refused_attention
from tokenuq_ml.models.base_settings import DEFAULT, BaseSettings
from tokenuq_ml.models.numerics import Numerics, resolve_numerics
from tokenuq_ml.models.quantization import load_quantised

hf_logging.disable_progress_bar()


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer with its chat template."""
    return AutoTokenizer.from_pretrained(folder)


def load_model(
    folder: str | Path, precision: str = "auto", settings: BaseSettings = DEFAULT
) -> tuple[PreTrainedModel, Numerics]:
    """Load the base model, frozen and in eval mode.

    Args:
        folder: Folder that `convert` wrote.
        precision: As for `resolve_numerics`.
        settings: How it is loaded besides.

    Returns:
        The model, and the device, dtype and threads that it was loaded for.

    Raises:
        InputError: The model, this machine or the precision does not support the settings.
    """
    numerics = resolve_numerics(precision)
    # On a CPU, probabilities far below float32's normal range would make every softmax many times slower.
    torch.set_flush_denormal(True)
    attention = attention_name(settings.attention, numerics, precision)
    with refused_attention(settings.attention, folder):
        if settings.quantization is not None:
            model = load_quantised(folder, numerics, settings.quantization, attn_implementation=attention)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=numerics.dtype, attn_implementation=attention)
            model = model.requires_grad_(False).to(numerics.device).eval()
    check_attention(model, settings.attention, folder)
    return model, numerics
