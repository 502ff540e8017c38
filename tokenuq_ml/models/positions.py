"""The longest text of models with a table of positions, which ends; rotary positions and slopes (ALiBi) do not.

Without a check, a longer text ends in an index error, on a GPU without a message. By `config.json`, so that `tokenuq
plan` and the tokenisation can read it. Does not import torch.
"""

from collections.abc import Mapping
from typing import Any

from tokenuq_ml.errors import InputError

_FIELDS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "n_ctx")
_TABLES = frozenset(
    "bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small codegen ctrl electra ernie "
    "gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj marian mbart megatron-bert mpt mvp openai-gpt opt pegasus plbart rembert "
    "roc_bert roformer trocr whisper xlm".split()
)
"""Model types whose forward pass fails after the last position."""
_PADDED_TABLES = frozenset(
    "camembert data2vec-text prophetnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split()
)
"""The same, with two positions that no token has."""


def most_positions(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of a text; None if positions do not end.

    Args:
        config: the contents of `config.json`.
    """
    kind = config.get("model_type")
    if kind not in _TABLES | _PADDED_TABLES:
        return None
    found = next((config[name] for name in _FIELDS if isinstance(config.get(name), int)), None)
    return found if found is None or kind in _TABLES else found - 2


def require_positions(longest: int, config: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuse a text that is longer than the model's positions.

    Args:
        longest: its tokens.
        config: the contents of `config.json`.
        what: the text, as the start of the message.
        remedy: what to do; `{limit}` in it becomes the number of positions.

    Raises:
        InputError: it is longer.
    """
    limit = most_positions(config)
    if limit is not None and longest > limit:
        raise InputError(
            f"{what} has {longest:,} tokens, and {config.get('model_type')} has {limit:,} positions; "
            f"{remedy.format(limit=limit)}"
        )
