"""Where distillation gets the teacher's distributions from: a cache of its states, or a forward pass.

Teacher and student share the frozen output head, so the teacher's hidden state after the
final norm is its whole distribution. Does not know what is done with it.

Shapes: N response tokens of a batch (or of the cache), D hidden size.
"""

import json
import math
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import polars as pl
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.atomic_files import AtomicFile, atomic_write
from tokenuq_ml.config import DistillSpec
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.training.token_batch import TokenBatch

HIDDEN_FILE, INDEX_FILE, ONLINE_FILE = "hidden.safetensors", "index.parquet", "online.json"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class TeacherSource(Protocol):
    """Where the teacher's distributions of a batch's response tokens come from; subclass it to add another source."""

    form: Literal["online", "hidden_states", "mean_embeddings"] = "online"
    """A forward pass, or rows of a cache in one of two forms; for the record of costs."""
    head: Head | None = None
    """The head of the hidden states, if it is not the student's."""

    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the teacher's states of the batch's N response tokens.

        Args:
            model: the student, which may hold the teacher's adapter.
            batch: the micro-batch, on the student's device.
        """
        ...


class OnlineTeacher(TeacherSource):
    """Teacher inside the student's model: a forward pass under another adapter, or under none.

    The pass runs without dropout and gradient. The student's adapter is active again afterwards.

    Args:
        adapter: the teacher's adapter in the student's `PeftModel`; None: the base model is the teacher.
        numerics: precision of the pass; default: that of the weights.

    Example:
        >>> import torch
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from tokenuq_ml import OnlineTeacher
        >>> from tokenuq_ml.training.token_batch import LabelledInputs
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules="all-linear"))
        >>> inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "labels": torch.tensor([[-100, -100, 5, 6]])}
        >>> OnlineTeacher().states(model, LabelledInputs(inputs)).hidden_ND.shape
        torch.Size([2, 16])
    """

    def __init__(self, adapter: str | None = None, numerics: Numerics | None = None):
        self.adapter, self.numerics = adapter, numerics

    @torch.no_grad()
    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the hidden states under the teacher's adapter."""
        was_training = model.training
        # With dropout on, the teacher would be another one at every step.
        model.eval()
        try:
            with use_adapter(model, self.adapter):
                return TeacherStates(batch.predicting(hidden_states(model, batch.model_inputs, self.numerics)))
        finally:
            model.train(was_training)


class SeparateTeacher(TeacherSource):
    """Teacher that is another model with its own head, for students that are trained without an adapter.

    Args:
        teacher: a causal language model over the student's vocabulary, on the student's device. It is set to
            evaluation mode and frozen.
        numerics: precision of the forward pass; default: that of the weights.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from tokenuq_ml import SeparateTeacher
        >>> from tokenuq_ml.training.token_batch import LabelledInputs
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> teacher = SeparateTeacher(LlamaForCausalLM(config))
        >>> inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "labels": torch.tensor([[-100, -100, 5, 6]])}
        >>> teacher.states(None, LabelledInputs(inputs)).hidden_ND.shape
        torch.Size([2, 16])
        >>> teacher.head.weight_VD.shape
        torch.Size([32, 16])
    """

    def __init__(self, teacher: PreTrainedModel, numerics: Numerics | None = None):
        self.teacher, self.numerics = teacher.eval().requires_grad_(False), numerics
        self.head = head_of(teacher)

    @torch.no_grad()
    def states(self, model: PeftModel | None, batch: TokenBatch) -> TeacherStates:
        """Return the teacher model's hidden states; `model`, the student, is not used."""
        return TeacherStates(batch.predicting(hidden_states(self.teacher, batch.model_inputs, self.numerics)))


class CachedTeacher(TeacherSource):
    """Teacher whose states are rows of the memory-mapped file that `TeacherCache` wrote.

    Returns mean embeddings, which save one head product per distilled token, if the file has them and `distillation`
    is forward KL at temperature 1; otherwise hidden states.

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
        linear = distillation is not None and distillation.is_linear_in_teacher
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


def cache_bytes(tokens: int, head: Head) -> int:
    """What `TeacherCache` takes on disk for that many response tokens, its header and index aside."""
    return sum(_bytes(*tensor) for tensor in _cached_tensors(tokens, head).values())


def go_online(folder: str | Path, needed: int, budget: int) -> str:
    """Leaves in place of a cache why there is none, and returns it. Both sizes in bytes."""
    needed_gb, budget_gb = f"{needed / 1e9:.3g} GB", f"{budget / 1e9:.3g} GB"
    why = f"{needed_gb} is above the budget of {budget_gb}"
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, ONLINE_FILE).write_text(json.dumps({"bytes": needed, "budget_bytes": budget, "why": why}))
    return why


def why_online(folder: str | Path) -> str | None:
    """Why the folder holds no cache, so that students run the teacher; None where it holds one."""
    path = Path(folder, ONLINE_FILE)
    return json.loads(path.read_text())["why"] if path.exists() else None


def _cached_tensors(tokens: int, head: Head) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each, the widest type first, which keeps every tensor aligned."""
    size = head.weight_VD.shape[1]
    hidden = {"hidden_ND": (torch.bfloat16, (tokens, size))}
    if head.softcap is not None:
        return hidden
    return {"offset_N": (torch.float32, (tokens,)), "mean_ND": (head.weight_VD.dtype, (tokens, size)), **hidden}


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


class TeacherCache:
    """Writes the cache example by example, in any order, straight to its place in the file.

    `hidden_ND` is bfloat16; `mean_ND` (in the head's dtype) and `offset_N` (float32) are there unless the head
    soft-caps its logits. Rows follow the order of example ids, then position. Of what is put, nothing stays in memory.
    Used as a context: the file takes its name once it is whole, and not at all after an error.

    Raises:
        ValueError: on leaving, when an example was not put.
    """

    def __init__(
        self,
        folder: str | Path,
        examples: Iterable[TokenizedExample],
        head: Head,
        *,
        dataset_digest: str,
        teacher_digest: str,
    ):
        self.folder, self.head = Path(folder), head
        self.folder.mkdir(parents=True, exist_ok=True)
        lengths = dict(sorted((example.example_id, len(example.positions)) for example in examples))
        firsts = [0, *accumulate(lengths.values())]
        self.tokens, self._missing = firsts[-1], set(lengths)
        self._first = dict(zip(lengths, firsts, strict=False))
        self._index = pl.DataFrame(
            {"example_id": list(lengths), "first_row": firsts[:-1], "tokens": list(lengths.values())}
        )
        self._hidden = AtomicFile(self.folder / HIDDEN_FILE)
        metadata = {"dataset": dataset_digest, "teacher": teacher_digest}
        self._start = _start_safetensors(self._hidden.file, _cached_tensors(self.tokens, head), metadata)

    def put(self, example_id: str, hidden_ND: Tensor) -> None:
        """The teacher's states of one example's response tokens, in order of position."""
        self._write("hidden_ND", example_id, hidden_ND.bfloat16())
        if "mean_ND" in self._start:
            states = mean_embeddings(hidden_ND, self.head).states(hidden_ND)
            self._write("mean_ND", example_id, states.mean_ND)
            self._write("offset_N", example_id, states.offset_N.float())
        self._missing.discard(example_id)

    def _write(self, name: str, example_id: str, rows: Tensor) -> None:
        # Not through a memory map: what was written that way counts as memory of the process.
        data = rows.cpu().contiguous().flatten().view(torch.uint8).numpy()
        a_row = rows[:1].numel() * rows.element_size()
        self._hidden.file.seek(self._start[name] + self._first[example_id] * a_row)
        self._hidden.file.write(data)

    def __enter__(self) -> "TeacherCache":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is not None:
                return
            if self._missing:
                raise ValueError(f"no states of {len(self._missing)} examples, e.g. {min(self._missing)}")
            with atomic_write(self.folder / INDEX_FILE) as file:
                self._index.write_parquet(file)
            self._hidden.commit()
        finally:
            self._hidden.discard()


def _start_safetensors(file: BinaryIO, tensors: dict, metadata: dict[str, str]) -> dict[str, int]:
    """Write the header and set the final size; return the byte at which each tensor starts.

    The library's own writer wants every tensor in memory at once.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(start + end)
    return {name: start + header[name]["data_offsets"][0] for name in tensors}
