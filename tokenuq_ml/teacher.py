"""Where distillation gets the teacher's distributions from: a cache of its states, or a forward pass.

Teacher and student share the frozen output head, so the teacher's hidden state after the
final norm is its whole distribution. Does not know what is done with it.

Shapes: N response tokens of a batch (or of the cache), D hidden size.
"""

import json
import os
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.batching import Batch, TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import Head, TeacherStates, mean_embeddings
from tokenuq_ml.models import Numerics, head_of, hidden_states, use_adapter
from tokenuq_ml.specs import DistillSpec

HIDDEN_FILE, INDEX_FILE = "hidden.safetensors", "index.parquet"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class TeacherSource(Protocol):
    """Gives the teacher's states for the response tokens of a batch."""

    def states(self, model: PeftModel, batch: Batch) -> TeacherStates: ...


class OnlineTeacher:
    """A forward pass under the teacher's adapter (None: under the base model), dropout off, no gradient."""

    def __init__(self, adapter: str | None, numerics: Numerics | None = None):
        self.adapter, self.numerics = adapter, numerics

    @torch.no_grad()
    def states(self, model: PeftModel, batch: Batch) -> TeacherStates:
        was_training = model.training
        # With dropout on, the teacher would be another one at every step.
        model.eval()
        try:
            with use_adapter(model, self.adapter):
                return TeacherStates(batch.predicting(hidden_states(model, batch.model_inputs, self.numerics)))
        finally:
            model.train(was_training)


class SeparateTeacher:
    """A forward pass under another model with a head of its own, as where the whole student is trained."""

    def __init__(self, teacher: PreTrainedModel, numerics: Numerics | None = None):
        self.teacher, self.numerics = teacher.eval().requires_grad_(False), numerics
        self.head = head_of(teacher)

    @torch.no_grad()
    def states(self, model, batch: Batch) -> TeacherStates:
        return TeacherStates(batch.predicting(hidden_states(self.teacher, batch.model_inputs, self.numerics)))


class CachedTeacher:
    """Rows of the memory-mapped file that `TeacherCache` wrote.

    Gives mean embeddings where the file has them and `distillation` is forward KL at temperature 1,
    which they save a head product; hidden states otherwise.

    Raises:
        InputError: the cache was made from another dataset or by another teacher than it is asked to serve.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str,
        *,
        dataset_digest: str,
        teacher_digest: str,
        distillation: DistillSpec | None = None,
    ):
        path = Path(folder, HIDDEN_FILE)
        self._file = safe_open(path, framework="pt")
        made_from = self._file.metadata()
        for what, wanted in (("dataset", dataset_digest), ("teacher", teacher_digest)):
            if made_from[what] != wanted:
                raise InputError(
                    f"{path}: holds states for {what} {made_from[what]}, not {wanted}; materialise teacher_hidden again"
                )
        linear = distillation is not None and (distillation.divergence, distillation.temperature) == ("forward_kl", 1)
        self.form = "mean_embeddings" if linear and "mean_ND" in self._file.keys() else "hidden_states"
        names = ("mean_ND", "offset_N") if self.form == "mean_embeddings" else ("hidden_ND",)
        self._rows = {name: self._file.get_slice(name) for name in names}
        self.device = device
        index = pl.read_parquet(Path(folder, INDEX_FILE))
        self._first = {example_id: (first, tokens) for example_id, first, tokens in index.iter_rows()}

    def states(self, model: PeftModel | None, batch: Batch) -> TeacherStates:
        spans = [self._first[example.example_id] for example in batch.examples]
        return TeacherStates(
            **{
                name: torch.cat([rows[first : first + tokens] for first, tokens in spans]).to(self.device)
                for name, rows in self._rows.items()
            }
        )


class TeacherCache:
    """Writes the cache example by example, in any order, straight to its place in the file.

    `hidden_ND` is bfloat16; `mean_ND` (in the head's dtype) and `offset_N` (float32) are there unless the head
    soft-caps its logits. Rows follow the order of example ids, then position. Memory does not grow with N.
    Used as a context: the file takes its name once it is whole, and not at all after an error.

    Raises:
        ValueError: on leaving, when an example was not put.
    """

    def __init__(
        self,
        folder: str | Path,
        examples: list[TokenizedExample],
        head: Head,
        *,
        dataset_digest: str,
        teacher_digest: str,
    ):
        self.folder, self.head = Path(folder), head
        self.folder.mkdir(parents=True, exist_ok=True)
        ordered = sorted(examples, key=lambda example: example.example_id)
        lengths = [len(example.positions) for example in ordered]
        firsts = [0, *accumulate(lengths)]
        self.tokens, self._missing = firsts[-1], {example.example_id for example in ordered}
        self._first = {example.example_id: first for example, first in zip(ordered, firsts, strict=False)}
        self._index = pl.DataFrame({"example_id": list(self._first), "first_row": firsts[:-1], "tokens": lengths})
        size = head.weight_VD.shape[1]
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"hidden_ND": (torch.bfloat16, (self.tokens, size))}
        if head.softcap is None:
            # Widest type first, which keeps every tensor aligned.
            shapes = {
                "offset_N": (torch.float32, (self.tokens,)),
                "mean_ND": (head.weight_VD.dtype, (self.tokens, size)),
                **shapes,
            }
        self._temporary = self.folder / f".{HIDDEN_FILE}.writing"
        metadata = {"dataset": dataset_digest, "teacher": teacher_digest}
        self._tensors = _mapped_safetensors(self._temporary, shapes, metadata)

    def put(self, example_id: str, hidden_ND: Tensor) -> None:
        """The teacher's states of one example's response tokens, in order of position."""
        rows = slice(self._first[example_id], self._first[example_id] + len(hidden_ND))
        self._tensors["hidden_ND"][rows] = hidden_ND.to("cpu", torch.bfloat16)
        if "mean_ND" in self._tensors:
            states = mean_embeddings(hidden_ND, self.head).states(hidden_ND)
            self._tensors["mean_ND"][rows] = states.mean_ND.cpu()
            self._tensors["offset_N"][rows] = states.offset_N.float().cpu()
        self._missing.discard(example_id)

    def __enter__(self) -> "TeacherCache":
        return self

    def __exit__(self, kind, *_) -> None:
        del self._tensors
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        if self._missing:
            raise ValueError(f"no states of {len(self._missing)} examples, e.g. {min(self._missing)}")
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        self._index.write_parquet(self.folder / INDEX_FILE)
        os.replace(self._temporary, self.folder / HIDDEN_FILE)


def _mapped_safetensors(path: Path, shapes: dict, metadata: dict[str, str]) -> dict[str, Tensor]:
    """A safetensors file of its final size, whose tensors are memory-mapped for writing.

    The library's own writer wants every tensor in memory at once.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
    data = torch.from_file(str(path), shared=True, size=start + end, dtype=torch.uint8)
    return {
        name: data[start + begin : start + stop].view(dtype).view(shape)
        for (name, (dtype, shape)), (begin, stop) in zip(
            shapes.items(), (header[name]["data_offsets"] for name in shapes), strict=True
        )
    }
