"""What a model's `config.json` says about whether it can be used, before any weights are read.

Used by the conversion and by `tokenuq plan`. Does not import torch. What only the weights show is decided by the gate
(`gate.py`).
"""

from collections.abc import Mapping
from typing import Any

_OTHER_PARTS = ("text_config", "vision_config", "audio_config", "speech_config", "thinker_config", "vit_config")
"""Parts of configurations of models that take more than text."""
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
REMEDY = "use a causal language model over text, such as Llama, Qwen or Gemma"


def why_unsupported(config: Mapping[str, Any]) -> str | None:
    """Return what rules a model out, in one sentence without its end; None if nothing in its configuration does.

    Args:
        config: the contents of `config.json`.
    """
    kind = config.get("model_type") or "the model"
    if any(isinstance(config.get(part), Mapping) for part in _OTHER_PARTS):
        return (
            f"{kind} is more than a text decoder (images, sound, an encoder); use a text-only model of its family, "
            "such as google/gemma-3-1b-it for Gemma-3"
        )
    if config.get("is_encoder_decoder"):
        return f"{kind} is an encoder-decoder; {REMEDY}"
    if config.get("quantization_config"):
        return (
            "the model is quantised, and tokenuq trains adapters on plain weights; use the model that it was quantised "
            "from, or a GGUF file (`source: gguf`)"
        )
    saved_as = config.get("architectures") or [""]
    if all(name.endswith("ForMaskedLM") for name in saved_as):
        return f"{saved_as[0]} reads a text in both directions, so it predicts no next token; {REMEDY}"
    if all(name.endswith(_OTHER_HEADS) for name in saved_as):
        return f"{saved_as[0]} has no output layer over the vocabulary; use the language model that it was trained from"
    return None
