"""Tiny random mixtures of experts, and labelled rows for a Trainer."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.support.tiny_models import MIXTURES, VOCAB, examples


def tiny_mixture(kind: str, **fields) -> PreTrainedModel:
    """Return a mixture whose router prefers some experts, so that its load-balancing loss is not at its minimum."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 512, "initializer_range": 0.3}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "router_aux_loss_coef": 0.3}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **MIXTURES[kind], **fields})).eval()


def labelled_rows(count: int = 8) -> list[dict]:
    """Return rows of a Trainer's dataset, of mixed lengths; prompts have no labels."""
    return [
        {
            "input_ids": list(example.input_ids),
            "labels": [
                token if response else -100
                for token, response in zip(example.input_ids, example.response_mask, strict=True)
            ],
        }
        for example in examples(count)
    ]


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Return a batch of rows, padded on the right, with an attention mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = lambda values, value: list(values) + [value] * (longest - len(values))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(row["input_ids"], 2) for row in rows]),
        "labels": torch.tensor([fill(row["labels"], -100) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
    }
