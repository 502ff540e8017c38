"""Token tables of any texts under any causal language model, without a study.

Takes a model, a tokenizer and texts, and returns a polars frame. Stores nothing.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.token_categories import token_texts
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapter_kinds import check_forward, has_adapter
from tokenuq_ml.models.flags import restored_flags
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.own_dropout import require_dropout
from tokenuq_ml.models.placement import device_of
from tokenuq_ml.models.positions import require_positions
from tokenuq_ml.models.sampled_layers import sampled_layers
from tokenuq_ml.scoring.finite_scores import named_as_texts
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.schemas import TOKEN_KEY

Text = str | Sequence[dict[str, str]]
"""A plain text, whose tokens after the first are scored; or a conversation (dicts with `role` and `content`), whose
assistant turns are scored."""


def score_tokens(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    max_length: int = 2**31,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """Measure the loss, entropy and rank of each token of texts under a model.

    The model runs in its own dtype, on its own device and without dropout. An active adapter takes part.

    Args:
        model: Any causal language model of transformers, with or without PEFT.
        tokenizer: Its tokenizer; a conversation needs a chat template.
        texts: Plain texts, whose tokens after the first are scored, or conversations (lists of dicts with `role` and
            `content`), whose assistant turns are scored.
        max_length: Tokens after which a text is cut off.
        max_tokens: Most padded tokens per batch. The default suits the device.

    Returns:
        One row per scored token: `text` (its index in `texts`), `position` (from 0), `token_id`, `token`, `loss` and
        `entropy` in nats, and `rank`, the number of tokens that the model finds more likely.

    Raises:
        InputError: No text has a token to score, a conversation does not fit the chat template, or the model or its
            adapter is one whose numbers would be wrong.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from tokenuq_ml import score_tokens
        >>> words = Tokenizer(models.WordLevel({"?": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> sizes = {"vocab_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))
        >>> table = score_tokens(model, tokenizer, ["the cat sat", "the sat"])
        >>> table.columns
        ['text', 'position', 'token_id', 'token', 'loss', 'entropy', 'rank']
        >>> table.select("text", "position", "token").rows()
        [(0, 1, 'cat'), (0, 2, 'sat'), (1, 1, 'sat')]
    """
    check_forward(model)
    examples = _tokenize(model, tokenizer, texts, max_length)
    with named_as_texts(), restored_flags(model):
        rows = score_examples(model, examples, _numerics(model), max_tokens=max_tokens)
    return _with_tokens(rows.drop("dataset", "split"), examples, tokenizer)


def measure_bald(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    samples: int = 10,
    dropout: float = 0.1,
    max_length: int = 2**31,
    max_tokens: int | None = None,
    **spec: Any,
) -> pl.DataFrame:
    """Measure the epistemic uncertainty (BALD) of each token of texts by Monte-Carlo dropout over a LoRA adapter.

    Of a model without an adapter, at the places where its architecture drops features, and of attention probabilities.

    Computes in float32: a model in bfloat16 is widened meanwhile, which takes three times its memory, and restored
    afterwards. The masks of a text depend on its index in `texts`, not on the batch.

    Args:
        model: A model with active adapters, all of whose layers are LoRA's linear layers (DoRA too); or without any.
        tokenizer: Its tokenizer; a conversation needs a chat template.
        texts: As for `score_tokens`.
        samples: Forward passes per text (K). The expected estimate is about (K - 1) / K of BALD.
        dropout: Rate at which the adapter's input features, or the model's own, are dropped.
        max_length: Tokens after which a text is cut off.
        max_tokens: Most padded tokens per batch. The default suits the device.
        **spec: Other fields of `UncertaintySpec`: `mask`, `attention_dropout`, `seed`.

    Returns:
        One row per scored token: `text` (its index in `texts`), `position` (from 0), `token_id`, `token`,
        `predictive_entropy`, `expected_entropy`, `bald`, `bald_std_error` (its spread over masks) and `mc_loss` in
        nats, and `n_samples`.

    Raises:
        InputError: An active layer of an adapter is not sampled, or nothing drops; no text has a token to score; or a
            conversation does not fit the chat template.
        ValueError: A field of `spec` is invalid.

    Examples:
        >>> from peft import LoraConfig, get_peft_model
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from tokenuq_ml import measure_bald
        >>> words = Tokenizer(models.WordLevel({"?": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> sizes = {"vocab_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        >>> base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))
        >>> lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        >>> table = measure_bald(get_peft_model(base, lora), tokenizer, ["the cat sat"], samples=4)
        >>> table.select("text", "position", "token", "n_samples").rows()
        [(0, 1, 'cat', 4), (0, 2, 'sat', 4)]
        >>> table.columns[4:8]
        ['predictive_entropy', 'expected_entropy', 'bald', 'bald_std_error']
    """
    uncertainty = UncertaintySpec(samples=samples, dropout=dropout, **spec)
    if has_adapter(model):
        sampled_layers(model)
    else:
        require_dropout(causal_lm(model), uncertainty.attention_dropout > 0)
    examples = _tokenize(model, tokenizer, texts, max_length)
    with named_as_texts():
        rows = token_uncertainty(model, examples, uncertainty, _numerics(model), max_tokens=max_tokens)
    return _with_tokens(rows, examples, tokenizer)


def _tokenize(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> list[TokenizedExample]:
    """Return the texts that have a token to score; their ids sort like their indices."""
    examples, config = [], causal_lm(model).config.get_text_config().to_dict()
    for index, text in enumerate(texts):
        if isinstance(text, str):
            ids = tokenizer(text)["input_ids"][:max_length]
            mask = [position > 0 for position in range(len(ids))]
        else:
            try:
                ids, mask, _ = tokenize_example(tokenizer, list(text), max_length)
            except InputError as error:
                raise InputError(f"text {index}: {error}") from None
        require_positions(len(ids), config, f"text {index}", "pass max_length={limit}")
        if any(mask):
            examples.append(TokenizedExample(f"{index:012d}", "texts", "test", ids, mask))
    if not examples:
        raise InputError("no text has a token to score: a text needs at least two tokens, a conversation an answer")
    return examples


def _numerics(model: PreTrainedModel | PeftModel) -> Numerics:
    return Numerics(str(device_of(model)), model.dtype, torch.get_num_threads(), "the model's own")


def _with_tokens(
    rows: pl.DataFrame, examples: list[TokenizedExample], tokenizer: PreTrainedTokenizerBase
) -> pl.DataFrame:
    """Return the rows by text and position, with the index of the text, the id and the text of each token."""
    ids = {example.example_id: example.input_ids for example in examples}
    rows = rows.sort(*TOKEN_KEY)
    token_ids = [ids[key][position] for key, position in rows.select(*TOKEN_KEY).iter_rows()]
    return rows.select(
        pl.col("example_id").cast(pl.Int64).alias("text"),
        "position",
        pl.Series("token_id", token_ids, dtype=pl.Int32),
        pl.Series("token", token_texts(tokenizer, token_ids)),
        pl.exclude(*TOKEN_KEY, "token_id"),
    )
