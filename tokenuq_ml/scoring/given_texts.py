"""Token tables of texts that belong to no study: losses with likeliest tokens, and BALD, as the stages measure them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import polars as pl
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.token_categories import token_texts
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.finite_scores import named_as_texts
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import N_ALTERNATIVES, score_examples, scored_batches, with_categories
from tokenuq_ml.tables.schemas import TABLES, TOKEN_KEY

_SCORED_AS = "test"
"""Split under which texts are scored: the likeliest tokens are kept of held-out ones only."""


class TextTables(NamedTuple):
    """What is measured of texts."""

    tokens: pl.DataFrame
    """The columns of the table `token_losses`, then those of `token_uncertainty` if BALD was measured. Without an
    adapter, `base_loss` is `loss`."""
    alternatives: pl.DataFrame
    """The columns of the table `token_alternatives`."""


def passes(uncertainty: UncertaintySpec | None, has_adapter: bool) -> int:
    """Return how many forward passes `measure` makes of each text."""
    return 1 + has_adapter + (uncertainty.samples if uncertainty is not None else 0)


def measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    numerics: Numerics,
    adapter: str | None = None,
    uncertainty: UncertaintySpec | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TextTables:
    """Measure losses under the model, under its base model, and BALD.

    Args:
        model: the model, in the dtype of `numerics`.
        tokenizer: its tokenizer.
        examples: the texts.
        numerics: device, dtype and threads.
        adapter: name of its adapter; None: the base model alone is measured.
        uncertainty: samples and dropout rate of BALD; None: it is not measured.
        progress: called with the number of tokens of each batch that has passed through the model.

    Raises:
        InputError: nothing of the adapter drops, so that it has no BALD.
        NonFiniteError: a score is NaN or infinite.
    """
    splits = pl.DataFrame(
        {"example_id": [one.example_id for one in examples], "split": [one.split for one in examples]}
    )
    held_out = [replace(one, split=_SCORED_AS) for one in examples]
    with named_as_texts(), _active(model, adapter):
        scored = list(scored_batches(model, held_out, numerics, progress, alternatives=N_ALTERNATIVES))
        rows = pl.concat([one.rows for one in scored]).sort(*TOKEN_KEY)
        alternatives = pl.concat([one.alternatives for one in scored]).sort(*TOKEN_KEY, "choice")
        uncertain = None
        if uncertainty is not None:
            uncertain = token_uncertainty(model, held_out, uncertainty, numerics, progress)
    base = rows
    if adapter is not None:
        with named_as_texts(), use_adapter(model, None):
            base = score_examples(model, held_out, numerics, progress).sort(*TOKEN_KEY)
    rows = rows.with_columns(base_loss=base["loss"], base_entropy=base["entropy"])
    rows = rows.drop("split").join(splits, on="example_id", maintain_order="left")
    tokens = with_categories(rows, tokenizer).select(*TABLES["token_losses"].columns)
    if uncertain is not None:
        tokens = tokens.join(uncertain, on=TOKEN_KEY, how="left", maintain_order="left")
    texts = token_texts(tokenizer, alternatives["token_id"].to_list())
    return TextTables(tokens, alternatives.with_columns(token=pl.Series(texts, dtype=pl.String)))


def _active(model: PreTrainedModel | PeftModel, adapter: str | None) -> AbstractContextManager:
    return nullcontext() if adapter is None else use_adapter(model, adapter)
