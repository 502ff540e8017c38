"""Tokenised examples and how they become batches: right-padded, of like length, in a seeded order.

Knows nothing of models or losses. Padding is told by length, never by a pad id, which
some tokenizers share with the end of turn.

Shapes: B sequences, T positions, N response tokens of a batch.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml.seeding import epoch_generator
from tokenuq_ml.tables.parquet import stream_table


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One row of `tokenized_dataset`; read from one, it holds arrays, a seventh of what lists take."""

    example_id: str
    dataset: str
    split: str
    input_ids: Sequence[int]
    response_mask: Sequence[bool]

    @property
    def positions(self) -> list[int]:
        """Positions of the response tokens, in order; nothing predicts a sequence's first token."""
        return [position for position in np.flatnonzero(self.response_mask).tolist() if position]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, or one row of packed ones; `response_BT` is true where a token is trained and scored."""

    examples: list[TokenizedExample]
    input_ids_BT: Tensor
    response_BT: Tensor
    position_ids_BT: Tensor | None = None
    """Only of packed sequences, each counting from 0: what tells the model where one ends."""

    def to(self, device: str | torch.device) -> "Batch":
        tensors = (self.input_ids_BT, self.response_BT, self.position_ids_BT)
        return Batch(self.examples, *(None if tensor is None else tensor.to(device) for tensor in tensors))

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass.

        No attention mask: padding is on the right, where the causal mask hides it already, and of packed
        sequences an attention mask would make transformers overlook the position ids.
        """
        packed = {} if self.position_ids_BT is None else {"position_ids": self.position_ids_BT}
        return {"input_ids": self.input_ids_BT, **packed}

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.response_BT[:, 1:].sum())

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """`hidden_ND`: the states from which the response tokens are predicted, one position before each."""
        return hidden_BTD[:, :-1][self.response_BT[:, 1:]]

    @property
    def label_N(self) -> Tensor:
        """Ids of the response tokens, by example, then position."""
        return self.input_ids_BT[:, 1:][self.response_BT[:, 1:]]

    @property
    def example_N(self) -> Tensor:
        """int64: which of the examples each of the N tokens belongs to."""
        lengths = torch.tensor([len(example.positions) for example in self.examples], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self.examples)), lengths)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(example_id, position) of each of the N tokens."""
        return [(example.example_id, position) for example in self.examples for position in example.positions]


class StoredExamples:
    """The rows of a `tokenized_dataset` partition, of all or some splits, in the order of ids.

    Read anew on each pass, some at a time: memory does not grow with the data.
    """

    _COLUMNS = ["example_id", "dataset", "split", "input_ids", "response_mask"]

    def __init__(self, folder: str | Path, splits: Sequence[str] | None = None):
        self.folder, self.splits = Path(folder), splits

    def __iter__(self) -> Iterator[TokenizedExample]:
        for rows in stream_table(self.folder, self._COLUMNS):
            names = zip(*(rows.column(name).to_pylist() for name in self._COLUMNS[:3]), strict=True)
            lists = [_arrays(rows.column(name)) for name in self._COLUMNS[3:]]
            for (example_id, dataset, split), ids, mask in zip(names, *lists, strict=True):
                if self.splits is None or split in self.splits:
                    # Copies, since a view would keep all rows that were read with it.
                    yield TokenizedExample(example_id, sys.intern(dataset), sys.intern(split), ids.copy(), mask.copy())


def _arrays(lists) -> list[np.ndarray]:
    """Views of each row of an Arrow list column."""
    ends = lists.offsets.to_numpy()
    return np.split(lists.values.to_numpy(zero_copy_only=False)[ends[0] : ends[-1]], ends[1:-1] - ends[0])


def read_examples(folder: str | Path, splits: Sequence[str] | None = None) -> list[TokenizedExample]:
    """All of `StoredExamples` at once, for training: it takes them in any order."""
    return list(StoredExamples(folder, splits))


def collate(examples: list[TokenizedExample]) -> Batch:
    """Pads on the right to the longest example, with id 0: which id never matters.

    No example at all gives one token without a response: a rank that has nothing to do still takes part.
    """
    if not examples:
        return Batch([], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool))
    longest = max(len(example.input_ids) for example in examples)
    input_ids_BT = torch.zeros(len(examples), longest, dtype=torch.long)
    response_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids_BT[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        response_BT[row, : len(example.response_mask)] = torch.tensor(example.response_mask)
    return Batch(examples, input_ids_BT, response_BT)


def pack(examples: list[TokenizedExample]) -> Batch:
    """All examples in one row, without padding, for models of which `models.packing_is_exact` holds."""
    if not examples:
        return collate(examples)
    ids = np.concatenate([example.input_ids for example in examples])
    # Of whatever numbers a mask is made, it must not be read as positions.
    response = np.concatenate([example.response_mask for example in examples]).astype(bool)
    positions = np.concatenate([np.arange(len(example.input_ids)) for example in examples])
    # A sequence's first token is predicted by none, and least of all by the sequence before it.
    response = response & (positions > 0)
    return Batch(examples, *(torch.from_numpy(part)[None] for part in (ids.astype(np.int64), response, positions)))


def shards(examples: Iterable[TokenizedExample], tokens: int) -> Iterator[list[TokenizedExample]]:
    """Runs of examples, which come in the order of ids, with about `tokens` response tokens each.

    What is worked on and written at a time: memory does not grow with the data, and rows come out in the
    order of the tables, while batches inside a shard are still of like length.
    """
    shard, rows = [], 0
    for example in examples:
        shard.append(example)
        rows += len(example.positions)
        if rows >= tokens:
            yield shard
            shard, rows = [], 0
    if shard:
        yield shard


def length_batches(examples: list[TokenizedExample], max_tokens: int, side_by_side: int = 1) -> Iterator[Batch]:
    """Batches for scoring: sorted by length, at most `max_tokens` padded tokens each; a longer text is alone.

    Where several run side by side, the last ones are smaller, down to a quarter, so that all end at about one time.
    """
    ordered = sorted(examples, key=lambda example: (-len(example.input_ids), example.example_id))
    left, start, limit = sum(len(example.input_ids) for example in ordered), 0, max_tokens
    while start < len(ordered):
        if side_by_side > 1:
            limit = min(max_tokens, max(max_tokens // 4, left // (2 * side_by_side)))
        taken = ordered[start : start + max(1, limit // len(ordered[start].input_ids))]
        yield collate(taken)
        left, start = left - sum(len(example.input_ids) for example in taken), start + len(taken)


class LengthBucketSampler:
    """Batch sampler for training: micro-batches of like length, in an order of (seed, epoch) alone.

    A permutation is cut into buckets of some batches, each bucket sorted by length and cut
    into optimiser batches, and those are shuffled; an optimiser batch is `accumulation`
    micro-batches in a row, on each of `ranks` ranks. Draws from a generator of its own: the global one
    would make the order depend on what else was drawn, and a resumed run would differ.
    """

    BUCKET_BATCHES = 16

    def __init__(
        self, lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ):
        if batch_size % (micro_batch_size * ranks):
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size} times {ranks} ranks"
            )
        self.lengths, self.batch_size, self.micro_batch_size, self.seed = (
            list(lengths),
            batch_size,
            micro_batch_size,
            seed,
        )
        self.rank, self.ranks = rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before each epoch, after a resumption too."""
        self.epoch = epoch

    def optimiser_batches(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each optimiser batch of `epoch`."""
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        bucket = self.batch_size * self.BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), bucket):
            ordered = sorted(order[start : start + bucket], key=lambda index: -self.lengths[index])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        # The one short batch, if any, stays last: Trainer accumulates a fixed number of micro-batches.
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        shuffled = torch.randperm(len(full), generator=generator).tolist()
        return [full[i] for i in shuffled] + short

    def _micro_batches(self, batch_size: int) -> list[slice]:
        """This rank's parts of an optimiser batch; empty ones where a short batch leaves it less than another rank."""
        share = -(-batch_size // self.ranks)
        first = self.rank * share
        steps = range(first, first + share, self.micro_batch_size)
        return [slice(start, min(start + self.micro_batch_size, first + share)) for start in steps]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.optimiser_batches(self.epoch):
            for part in self._micro_batches(len(batch)):
                yield batch[part]

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full * len(self._micro_batches(self.batch_size)) + (len(self._micro_batches(rest)) if rest else 0)
