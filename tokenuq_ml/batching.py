"""Tokenised examples and how they become batches: right-padded, of like length, in a seeded order.

Knows nothing of models or losses. Padding is told by length, never by a pad id, which
some tokenizers share with the end of turn.

Shapes: B sequences, T positions, N response tokens of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from tokenuq_ml.tables import read_table


@dataclass(frozen=True)
class TokenizedExample:
    """One row of `tokenized_dataset`."""

    example_id: str
    dataset: str
    split: str
    input_ids: list[int]
    response_mask: list[bool]

    @property
    def positions(self) -> list[int]:
        """Positions of the response tokens, in order."""
        return [position for position, response in enumerate(self.response_mask) if response]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences; `response_BT` is true where a token is trained and scored."""

    examples: list[TokenizedExample]
    input_ids_BT: Tensor
    response_BT: Tensor

    def to(self, device: str) -> "Batch":
        return Batch(self.examples, self.input_ids_BT.to(device), self.response_BT.to(device))

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """`hidden_ND`: the states from which the response tokens are predicted, one position before each."""
        return hidden_BTD[:, :-1][self.response_BT[:, 1:]]

    @property
    def label_N(self) -> Tensor:
        """Ids of the response tokens, by example, then position."""
        return self.input_ids_BT[:, 1:][self.response_BT[:, 1:]]

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(example_id, position) of each of the N tokens."""
        return [(example.example_id, position) for example in self.examples for position in example.positions]


def read_examples(folder: str | Path, splits: Sequence[str] | None = None) -> list[TokenizedExample]:
    """The rows of a `tokenized_dataset` partition, of all or some splits, sorted by example_id."""
    frame = read_table(folder)
    if splits is not None:
        frame = frame.filter(pl.col("split").is_in(list(splits)))
    return [
        TokenizedExample(*row)
        for row in frame.select("example_id", "dataset", "split", "input_ids", "response_mask").iter_rows()
    ]


def collate(examples: list[TokenizedExample]) -> Batch:
    """Pads on the right to the longest example, with id 0: which id never matters."""
    longest = max(len(example.input_ids) for example in examples)
    input_ids_BT = torch.zeros(len(examples), longest, dtype=torch.long)
    response_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids_BT[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        response_BT[row, : len(example.response_mask)] = torch.tensor(example.response_mask)
    return Batch(examples, input_ids_BT, response_BT)


def length_batches(examples: list[TokenizedExample], max_tokens: int) -> Iterator[Batch]:
    """Batches for scoring: sorted by length, at most `max_tokens` padded tokens each."""
    ordered = sorted(examples, key=lambda example: (-len(example.input_ids), example.example_id))
    start = 0
    while start < len(ordered):
        size = max(1, max_tokens // len(ordered[start].input_ids))
        yield collate(ordered[start : start + size])
        start += size


class LengthBucketSampler:
    """Batch sampler for training: micro-batches of like length, in an order of (seed, epoch) alone.

    A permutation is cut into buckets of some batches, each bucket sorted by length and cut
    into optimiser batches, and those are shuffled; an optimiser batch is `accumulation`
    micro-batches in a row. Draws from a generator of its own: the global one would make
    the order depend on what else was drawn, and a resumed run would differ.
    """

    BUCKET_BATCHES = 16

    def __init__(self, lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int):
        self.lengths, self.batch_size, self.micro_batch_size, self.seed = (
            list(lengths),
            batch_size,
            micro_batch_size,
            seed,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before each epoch, after a resumption too."""
        self.epoch = epoch

    def optimiser_batches(self, epoch: int) -> list[list[int]]:
        """Indices of the examples of each optimiser batch of `epoch`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
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

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.optimiser_batches(self.epoch):
            for start in range(0, len(batch), self.micro_batch_size):
                yield batch[start : start + self.micro_batch_size]

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full * (self.batch_size // self.micro_batch_size) + -(-rest // self.micro_batch_size)
