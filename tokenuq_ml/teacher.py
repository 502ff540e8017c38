"""Where distillation gets the teacher's distribution from: cached hidden states, or a forward pass.

Teacher and student share the frozen output head, so the teacher's hidden state after the
final norm is its whole distribution. Does not know what is done with it.

Shapes: N response tokens of a batch, D hidden size.
"""

import os
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import polars as pl
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenuq_ml.batching import Batch, TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.models import Numerics, hidden_states, use_adapter

HIDDEN_FILE, INDEX_FILE = "hidden.safetensors", "index.parquet"


class TeacherSource(Protocol):
    """Gives the teacher's `hidden_ND` for the response tokens of a batch."""

    def states(self, model: PeftModel, batch: Batch) -> Tensor: ...


class OnlineTeacher:
    """A forward pass under the teacher's adapter (None: under the base model), dropout off, no gradient."""

    def __init__(self, adapter: str | None, numerics: Numerics):
        self.adapter, self.numerics = adapter, numerics

    @torch.no_grad()
    def states(self, model: PeftModel, batch: Batch) -> Tensor:
        was_training = model.training
        # With dropout on, the teacher would be another one at every step.
        model.eval()
        try:
            with use_adapter(model, self.adapter):
                return batch.predicting(hidden_states(model, batch.input_ids_BT, self.numerics))
        finally:
            model.train(was_training)


class CachedTeacher:
    """Rows of the memory-mapped file that `write_teacher_hidden` made.

    Raises:
        InputError: the cache was made from another dataset or by another teacher than it is asked to serve.
    """

    def __init__(self, folder: str | Path, device: str, *, dataset_digest: str, teacher_digest: str | None = None):
        path = Path(folder, HIDDEN_FILE)
        self._file = safe_open(path, framework="pt")
        made_from = self._file.metadata()
        for what, wanted in (("dataset", dataset_digest), ("teacher", teacher_digest)):
            if wanted is not None and made_from[what] != wanted:
                raise InputError(
                    f"{path}: holds states for {what} {made_from[what]}, not {wanted}; materialise teacher_hidden again"
                )
        self._rows, self.device = self._file.get_slice("hidden_ND"), device
        index = pl.read_parquet(Path(folder, INDEX_FILE))
        self._first = {example_id: (first, tokens) for example_id, first, tokens in index.iter_rows()}

    def example_states(self, example: TokenizedExample) -> Tensor:
        """`hidden_ND` of one example's response tokens, in order of position."""
        first, tokens = self._first[example.example_id]
        return self._rows[first : first + tokens]

    def states(self, model: PeftModel, batch: Batch) -> Tensor:
        return torch.cat([self.example_states(example) for example in batch.examples]).to(self.device)


def write_teacher_hidden(
    folder: str | Path, states: dict[str, Tensor], *, dataset_digest: str, teacher_digest: str
) -> None:
    """Store `hidden_ND` of each example in bfloat16, rows in the order of example ids."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = sorted(states)
    lengths = [len(states[example_id]) for example_id in ids]
    firsts = [0, *accumulate(lengths)][:-1]
    pl.DataFrame({"example_id": ids, "first_row": firsts, "tokens": lengths}).write_parquet(folder / INDEX_FILE)
    hidden_ND = torch.cat([states[example_id].to(torch.bfloat16) for example_id in ids])
    temporary = folder / f".{HIDDEN_FILE}.writing"
    save_file({"hidden_ND": hidden_ND}, temporary, metadata={"dataset": dataset_digest, "teacher": teacher_digest})
    os.replace(temporary, folder / HIDDEN_FILE)
