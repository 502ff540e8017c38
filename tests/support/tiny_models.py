"""Tiny random models and examples, made when they are called: no test needs weights or data."""

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from tokenuq_ml.config import LoraSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.numerics import Numerics

FLOAT32 = Numerics("cpu", torch.float32, 1, "test")
VOCAB = 97


def tiny_model(kind: str = "llama", vocab: int = VOCAB, seed: int = 0):
    """A random two-layer model with a peaked enough distribution that losses differ between tokens."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = {
        "llama": lambda: LlamaConfig(**sizes, tie_word_embeddings=True),
        "gemma2": lambda: Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        ),
    }[kind]()
    model = AutoModelForCausalLM.from_config(config)
    model.requires_grad_(False)
    return model.eval()


def tiny_peft(kind: str = "llama", dropout: float = 0.0, seed: int = 0, trained: bool = True, vocab: int = VOCAB):
    """A tiny model with a LoRA adapter; `trained` makes its B matrices non-zero, as training would."""
    model = add_adapter(tiny_model(kind, vocab), LoraSpec(rank=4, alpha=8, dropout=dropout), seed)
    if trained:
        torch.manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
    return model


def examples(count: int, split: str = "train", vocab: int = VOCAB, seed: int = 0, dataset: str = "toy"):
    """Examples of mixed lengths, each with a prompt and a response."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt, response = draw.randint(2, 6), draw.randint(3, 20)
        ids = [draw.randrange(3, vocab) for _ in range(prompt + response)]
        mask = [False] * prompt + [True] * response
        made.append(TokenizedExample(f"{dataset}/{split}{number:04d}", dataset, split, ids, mask))
    return made


MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 1,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
"""What makes a small mixture of experts of each architecture."""
RECURRENT = {"mamba": {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}}
"""Models that carry a state from token to token; their configurations require ids of special tokens."""

# What of each architecture could go wrong, and is on: caps, windows shorter than the texts, biases, tied heads or not.
ARCHITECTURES = {
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 2.0,
        "sliding_window": 8,
    },
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "llama": {"tie_word_embeddings": True},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5, "resid_pdrop": 0.1},
    "phi3": {"original_max_position_embeddings": 512},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gpt2": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 8},
    **MIXTURES,
    **RECURRENT,
    # Its own forward pass computes the logits: there is a dense layer with a norm before the output layer.
    "modernbert_decoder": {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 4},
}


def _model_type(kind: str) -> str:
    """Return transformers' name; names of studies have no hyphens."""
    return kind.replace("_", "-") if "decoder" in kind else kind


def tiny_architecture(kind: str, vocab: int = VOCAB):
    """A random two-layer model of a named architecture; norms and biases are random too, since ones and zeros hide."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": vocab, "max_position_embeddings": 512, "initializer_range": 0.2}
    sizes |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(_model_type(kind), **{**sizes, **ARCHITECTURES[kind]})
    )
    for name, parameter in model.named_parameters():
        # GPT-2 calls its norms ln_1 and the like.
        if "norm" in name or "ln_" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data += "bias" not in name and "gemma" not in kind
    return model.requires_grad_(False).eval()
