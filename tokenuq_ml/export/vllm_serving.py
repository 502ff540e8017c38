"""How vLLM serves a trained model: the adapter on its base model, if vLLM takes such an adapter.

Does not import torch.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.vllm_limits import RANKS, why_not_served

MERGE = "merge it, and serve the folder: `tokenuq export {name} --merge DIR`, then `vllm serve DIR`"


@dataclass(frozen=True)
class Serving:
    """A command that serves a model."""

    arguments: tuple[str, ...]
    model: str
    """The name by which a request asks for it."""
    installed: bool
    """Whether vLLM is installed here."""


def serving(base: Path, weights: Path, name: str, quantization: str | None) -> Serving:
    """Return the command with which vLLM serves a trained model.

    Args:
        base: folder of the base model.
        weights: folder of the adapter, or of the complete model.
        name: of the trained model, `study/ablation`.
        quantization: of the base model in training.

    Raises:
        InputError: vLLM does not apply such an adapter; the message says what does.
    """
    installed, label = importlib.util.find_spec("vllm") is not None, name.replace("/", "-")
    settings_file = weights / "adapter_config.json"
    if not settings_file.is_file():
        # Full fine-tuning: the folder has no tokenizer, which is the base model's.
        arguments = ("vllm", "serve", str(weights), "--tokenizer", str(base), "--served-model-name", label)
        return Serving((*arguments, "--generation-config", str(base)), label, installed)
    if quantization is not None:
        raise InputError(
            f"--vllm: {name} was trained on a base model quantised to {quantization}, which vLLM would quantise in its "
            f"own way; {MERGE.format(name=name)}"
        )
    settings = json.loads(settings_file.read_text())
    if (reason := why_not_served(settings)) is not None:
        raise InputError(f"--vllm: vLLM does not take the adapter of {name}: {reason}; {MERGE.format(name=name)}")
    rank = next(allowed for allowed in RANKS if allowed >= settings["r"])
    arguments = ("vllm", "serve", str(base), "--enable-lora", "--max-lora-rank", str(rank))
    return Serving((*arguments, "--lora-modules", f"{label}={weights}"), label, installed)
