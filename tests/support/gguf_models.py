"""Models whose GGUF files are compared: weights that hide no mistake, and scaled positions."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random_model(kind: str, seed: int, **settings):
    """Return a model whose norms and biases are random too, since ones and zeros hide mistakes."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data += "bias" not in name and "gemma" not in kind
    return model.eval()
