"""The model that an evaluation stage evaluates, and what one metric family of the evaluation gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.stages.adapted_model import StoredModel

HELD_OUT = ("test", "ood")
"""Splits that are evaluated on."""


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation, with its active adapter, if any."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: str | Path | None
    """Folder of the active adapter; None for the base model."""
    family: str
    seed: int | None
    name: str
    """Prefix of progress lines."""
    stored: StoredModel | None = None
    """The same model, for other processes; None: only this one has it."""


@dataclass(frozen=True)
class EvaluationPart:
    """The results of one metric family, for example of GSM8K."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Output -> table."""
    examples: tuple[pl.DataFrame, ...] = ()
    """Rows of `evaluation_examples`, each frame with columns EXAMPLE_SCHEMA."""
    notes: Mapping[str, int | str] = field(default_factory=dict)
    """Figures of the metadata that are no metrics, such as what was left out and why."""
    directions: Mapping[tuple[str, str], bool | None] = field(default_factory=dict)
    """(dataset, metric) -> whether higher is better, for metrics whose name does not say it."""
