"""The cache of a teacher's states: one file for all response tokens of the train split, written once and memory-mapped.

Shapes: N response tokens of a batch (or of the cache), D hidden size.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import polars as pl
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml import process_group
from tokenuq_ml.atomic_files import AtomicFile, atomic_write
from tokenuq_ml.config import DistillSpec
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.disk import require_space
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.training.prefetched_rows import PrefetchedRows
from tokenuq_ml.training.states_writer import CachePart, StatesWriter, copy_bytes, row_spans
from tokenuq_ml.training.teacher import TeacherSource
from tokenuq_ml.training.teacher_head import head_bytes, read_head, write_head

HIDDEN_FILE, INDEX_FILE = "hidden.safetensors", "index.parquet"
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class CachedTeacher(TeacherSource):
    """Teacher whose states are rows of the file that `TeacherCache` wrote.

    Returns mean embeddings, which save one head product per distilled token, if the file has them and `distillation`
    is forward KL at temperature 1; otherwise hidden states.

    Args:
        folder: the folder that `TeacherCache` wrote.
        device: where the states go.
        dataset_digest: digest of the tokenised dataset that is trained on.
        teacher_digest: digest of the teacher's adapter.
        distillation: what the states are used for; None: hidden states.

    Raises:
        InputError: the cache holds states of another dataset or teacher.
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
        stored = self._file.metadata()
        for what, wanted in (("dataset", dataset_digest), ("teacher", teacher_digest)):
            if stored[what] != wanted:
                raise InputError(
                    f"{path}: holds states for {what} {stored[what]}, not {wanted}; materialise teacher_hidden again"
                )
        linear = distillation is not None and distillation.is_linear_in_teacher
        self.form = "mean_embeddings" if linear and "mean_ND" in self._file.keys() else "hidden_states"
        names = ("mean_ND", "offset_N") if self.form == "mean_embeddings" else ("hidden_ND",)
        self._rows = PrefetchedRows({name: self._file.get_slice(name) for name in names}, device)
        self.head = read_head(folder, device)
        index = pl.read_parquet(Path(folder, INDEX_FILE))
        self._spans = {example_id: (first, tokens) for example_id, first, tokens in index.iter_rows()}

    def prepare(self, student: PeftModel | PreTrainedModel, tokenizer: Any = None) -> None:
        """Check that the student has the head that the states are for, and does not train it.

        States that are logits, of a model whose own forward pass computes them, need no head; nor do those of a
        teacher whose own head is stored with them.

        Raises:
            InputError: the student trains or adapts its head.
        """
        if self.head is not None:
            return
        head = head_of(student)
        width = self._file.get_slice("hidden_ND").get_shape()[1]
        holds_logits = isinstance(head, LogitsHead) and width == head.vocabulary
        if not holds_logits and (isinstance(head, LogitsHead) or head.weight_VD.requires_grad):
            raise InputError(
                "the cached states are for the base model's head, and the student trains or adapts its own; use "
                "OnlineTeacher, or leave lm_head out of the adapter"
            )

    def states(self, model: PeftModel | None, batch: Batch) -> TeacherStates:
        """Return the rows of the batch's examples; `model` is not used."""
        return TeacherStates(**self._rows.take(*self._rows_of(batch)))

    def prefetch(self, batch: Batch) -> None:
        """Begin to copy the rows of the batch's examples to a GPU."""
        self._rows.start(*self._rows_of(batch))

    def _rows_of(self, batch: Batch) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
        example_ids = tuple(example.example_id for example in batch.examples)
        return example_ids, [self._spans[example_id] for example_id in example_ids]


class TeacherCache:
    """Writer of the cache: takes examples in any order, and writes each to its place in the file.

    The file has `hidden_ND` (bfloat16) and, unless the head soft-caps its logits, `mean_ND` (in the head's dtype) and
    `offset_N` (float32). Rows are ordered by example id, then position. Nothing that was put stays in memory.

    Used as a context manager: the file appears when the block ends, and not after an error. In a stage of several
    processes every rank has one: all write to the same file, each the examples that it puts.

    Args:
        folder: where the cache is written.
        examples: the examples that will be put.
        head: the teacher's head.
        shared_head: whether students have the same head. If not, it is stored too, and there are no mean embeddings.
        dataset_digest: digest of the tokenised dataset.
        teacher_digest: digest of the teacher's adapter.

    Raises:
        ValueError: at the end of the block, if an example was not put.
    """

    def __init__(
        self,
        folder: str | Path,
        examples: Iterable[TokenizedExample],
        head: Head,
        *,
        dataset_digest: str,
        teacher_digest: str,
        shared_head: bool = True,
    ):
        self.folder, self.head, self.shared_head = Path(folder), head, shared_head
        self.folder.mkdir(parents=True, exist_ok=True)
        lengths = dict(sorted((example.example_id, len(example.positions)) for example in examples))
        firsts = [0, *accumulate(lengths.values())]
        self.tokens, self._missing = firsts[-1], set(lengths)
        self._first = dict(zip(lengths, firsts, strict=False))
        self._index = pl.DataFrame(
            {"example_id": list(lengths), "first_row": firsts[:-1], "tokens": list(lengths.values())}
        )
        metadata = {"dataset": dataset_digest, "teacher": teacher_digest}
        tensors = _cached_tensors(self.tokens, head, shared_head)
        head_bytes, self._start, size = _safetensors_layout(tensors, metadata)
        self._row_bytes = {name: _bytes(dtype, shape[1:]) for name, (dtype, shape) in tensors.items()}
        self._lengths = lengths
        self._hidden: AtomicFile | None = None
        path = process_group.on_main(lambda: self._create(head_bytes, size))
        self._path = path
        # Of the file's own object, so that the writes of a rank are in one order.
        self._file = self._hidden.file if self._hidden is not None else open(path, "r+b")
        self._writer = StatesWriter(self._file, self._start, self._first, head)

    def _create(self, head_bytes: bytes, size: int) -> Path:
        """Create the file, with its header and its final size; return where it is until it is complete."""
        # The file has its size from the beginning, but no space: hours later it would find none.
        require_space(self.folder, self.bytes, "the cache of the teacher's states")
        self._hidden = AtomicFile(self.folder / HIDDEN_FILE)
        self._hidden.file.write(head_bytes)
        self._hidden.file.truncate(size)
        self._hidden.file.flush()
        return self._hidden.temporary

    @property
    def bytes(self) -> int:
        """Size on disk of the complete cache, without headers and index."""
        return cache_bytes(self.tokens, self.head, self.shared_head)

    def put(self, example_id: str, hidden_ND: Tensor) -> None:
        """Write the states of an example.

        Args:
            example_id: the example.
            hidden_ND: the teacher's states of its response tokens, in order of position.
        """
        self._writer.put(example_id, hidden_ND)
        # Rank 0 reads what other ranks have written.
        self._file.flush()
        self._missing.discard(example_id)

    def part(self, example_ids: Iterable[str]) -> CachePart:
        """Return where the states of some examples go, for a process that writes them in place of this one."""
        return CachePart(self._path, self._start, {example_id: self._first[example_id] for example_id in example_ids})

    def note(self, part: CachePart) -> None:
        """Record that another process has put the examples of a part."""
        self._missing -= part.first.keys()

    def bytes_of(self, example_ids: Iterable[str]) -> int:
        """Return the bytes of the states of some examples."""
        return sum(self._lengths[example_id] for example_id in example_ids) * sum(self._row_bytes.values())

    def copy_rows_to(self, file: BinaryIO, example_ids: Sequence[str]) -> None:
        """Copy the states of examples that were put to another file, one tensor after another."""
        self._file.flush()
        with open(self._path, "rb") as own:
            for start, size in self._spans(example_ids):
                own.seek(start)
                copy_bytes(own, file, size)

    def copy_rows_from(self, file: BinaryIO, example_ids: Sequence[str]) -> None:
        """Put examples whose states `copy_rows_to` has written to a file."""
        for start, size in self._spans(example_ids):
            self._file.seek(start)
            copy_bytes(file, self._file, size)
        self._file.flush()
        self._missing -= set(example_ids)

    def _spans(self, example_ids: Sequence[str]) -> Iterator[tuple[int, int]]:
        rows = [(self._first[example_id], self._lengths[example_id]) for example_id in example_ids]
        return row_spans(rows, self._start, self._row_bytes)

    def __enter__(self) -> "TeacherCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            self._file.flush()
            missing = set.intersection(*process_group.gather_objects([self._missing]))
            if missing:
                raise ValueError(f"the states of {len(missing)} examples were not put, e.g. of {min(missing)}")
            if self._hidden is not None:
                if not self.shared_head and not isinstance(self.head, LogitsHead):
                    write_head(self.folder, self.head)
                with atomic_write(self.folder / INDEX_FILE) as file:
                    self._index.write_parquet(file)
                self._hidden.commit()
        finally:
            if self._hidden is not None:
                self._hidden.discard()
            else:
                self._file.close()


def cache_bytes(tokens: int, head: Head, shared_head: bool = True) -> int:
    """Return the size on disk of a cache for that many response tokens, without its headers and index."""
    states = sum(_bytes(*tensor) for tensor in _cached_tensors(tokens, head, shared_head).values())
    return states if shared_head else states + head_bytes(head)


def _cached_tensors(tokens: int, head: Head, shared_head: bool) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor, the widest dtype first, which keeps every tensor aligned."""
    size = head.features
    hidden = {"hidden_ND": (torch.bfloat16, (tokens, size))}
    if not head.is_linear or not shared_head:
        return hidden
    return {"offset_N": (torch.float32, (tokens,)), "mean_ND": (head.weight_VD.dtype, (tokens, size)), **hidden}


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _safetensors_layout(tensors: dict, metadata: dict[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Return the first bytes of the file, the byte at which each tensor starts, and the file's size.

    The safetensors library can only write tensors that are all in memory.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    starts = {name: start + header[name]["data_offsets"][0] for name in tensors}
    return len(text).to_bytes(8, "little") + text, starts, start + end
