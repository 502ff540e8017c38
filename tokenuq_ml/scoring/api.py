"""Token tables of any texts under any causal language model, without a study around them.

A library face of `token_losses.py` and `mc_dropout.py`: takes what a user holds (a model, a
tokenizer, texts) and gives a polars frame. Stores nothing.
"""

from collections.abc import Sequence

import polars as pl
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.token_categories import token_texts
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.schemas import TOKEN_KEY

Text = str | Sequence[dict[str, str]]
"""A plain text, every token but the first of which is scored; or a conversation of `role` and `content`,
whose assistant turns are."""


def score_tokens(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    max_length: int = 2**31,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """One row a scored token: `text` (index), `position`, `token_id`, `token`, `loss`, `entropy` (nats), `rank`.

    The model runs as it stands, in its own dtype and on its own device, dropout off. `rank` counts the
    tokens that it finds likelier. `max_tokens` bounds the padded tokens of a forward pass
    (default: what suits the device).

    Raises:
        InputError: no text has a token to score, or a conversation does not fit the chat template.
    """
    examples = _examples(tokenizer, texts, max_length)
    was_training = model.training
    try:
        rows = score_examples(model, examples, _numerics(model), max_tokens=max_tokens)
    finally:
        model.train(was_training)
    return _named(rows.drop("dataset", "split"), examples, tokenizer)


def measure_bald(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    samples: int = 10,
    dropout: float = 0.1,
    max_length: int = 2**31,
    max_tokens: int | None = None,
    **spec,
) -> pl.DataFrame:
    """One row per scored token: `text`, `position`, `token_id`, `token`, and the columns of `token_uncertainty`.

    Monte-Carlo dropout over the active LoRA adapter, computed in float32: a model in bfloat16 is widened meanwhile,
    which takes three times its memory, and is afterwards as it was. BALD from K samples is low by about (K-1)/K.

    `spec` takes the other fields of `UncertaintySpec` (`mask`, `attention_dropout`, `seed`). A text's masks depend on
    its index, not on the batch.

    Raises:
        InputError: the model has no adapter, no text has a token to score, or a conversation does not fit the template.
        ValueError: the adapter has no LoRA layer, so that BALD would be 0 everywhere.
    """
    if not isinstance(model, PeftModel):
        raise InputError(
            f"a {type(model).__name__} has no LoRA adapter whose dropout could be sampled; pass a PeftModel"
        )
    examples = _examples(tokenizer, texts, max_length)
    uncertainty = UncertaintySpec(samples=samples, dropout=dropout, **spec)
    rows = token_uncertainty(model, examples, uncertainty, _numerics(model), max_tokens=max_tokens)
    return _named(rows, examples, tokenizer)


def _examples(tokenizer, texts: Sequence[Text], max_length: int) -> list[TokenizedExample]:
    examples = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            ids = tokenizer(text)["input_ids"][:max_length]
            mask = [position > 0 for position in range(len(ids))]
        else:
            try:
                ids, mask, _ = tokenize_example(tokenizer, list(text), max_length)
            except InputError as error:
                raise InputError(f"text {index}: {error}") from None
        if any(mask):
            examples.append(TokenizedExample(f"{index:012d}", "texts", "test", ids, mask))
    if not examples:
        raise InputError("no text has a token to score: a text needs at least two tokens, a conversation an answer")
    return examples


def _numerics(model: PreTrainedModel | PeftModel) -> Numerics:
    return Numerics(str(model.device), model.dtype, torch.get_num_threads(), "the model's own")


def _named(rows: pl.DataFrame, examples: list[TokenizedExample], tokenizer) -> pl.DataFrame:
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
