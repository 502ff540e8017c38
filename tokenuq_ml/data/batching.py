"""Tokenised examples, and batches of them: right-padded, of similar lengths, in a seeded order.

Padding is identified by length, never by a pad id, which some tokenizers also use as the end of turn.

Shapes: B sequences, T positions, N response tokens of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml.seeding import epoch_generator
from tokenuq_ml.transfers import to_device


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """One row of `tokenized_dataset`; read from the table it holds arrays, which need a seventh of a list's memory."""

    example_id: str
    dataset: str
    split: str
    input_ids: Sequence[int]
    response_mask: Sequence[bool]
    weights: Sequence[float] | None = None
    """Factor of each token's term in training, for all of `input_ids`; None: 1."""

    @property
    def positions(self) -> list[int]:
        """Positions of the response tokens, in order; without a sequence's first token, which nothing predicts."""
        return [position for position in np.flatnonzero(self.response_mask).tolist() if position]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, or one row of packed ones; `response_BT` marks the tokens that are trained and scored."""

    examples: list[TokenizedExample]
    input_ids_BT: Tensor
    response_BT: Tensor
    position_ids_BT: Tensor | None = None
    """Set for packed sequences only: each counts from 0, which shows the model where a sequence begins."""
    mask_BT: Tensor | None = None
    """1 for tokens and 0 for padding, for models that count tokens, as a router's loss does."""

    def to(self, device: str | torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {
            name: to_device(value, device) for name, value in given.items() if isinstance(value, Tensor)
        }
        moved = replace(self, **tensors)
        # Found on the host: to find it on a GPU, the host would have to wait for it.
        vars(moved)["predicting_N"] = to_device(self.predicting_N, device)
        return moved

    def with_mask(self) -> "Batch":
        """Return the batch with `mask_BT`, unless it is packed and so has no padding."""
        if self.position_ids_BT is not None:
            return self
        lengths = [len(example.input_ids) for example in self.examples] or [1]
        length_B1 = torch.tensor(lengths, device=self.input_ids_BT.device)[:, None]
        position_T = torch.arange(self.input_ids_BT.shape[1], device=length_B1.device)
        return replace(self, mask_BT=(position_T < length_B1).long())

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass.

        Usually without an attention mask: the causal mask already hides padding on the right, and with packed sequences
        an attention mask would make transformers ignore the position ids.
        """
        optional = {"position_ids": self.position_ids_BT, "attention_mask": self.mask_BT}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"input_ids": self.input_ids_BT, **given}

    @cached_property
    def predicting_N(self) -> Tensor:
        """int64: where the states are from which the response tokens are predicted, in `[B * T]`."""
        row_N, before_N = self.response_BT[:, 1:].nonzero(as_tuple=True)
        return row_N * self.response_BT.shape[1] + before_N

    @property
    def tokens(self) -> int:
        """N, the number of response tokens."""
        return len(self.predicting_N)

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """Return `hidden_ND`, the states that predict the response tokens: one position before each."""
        return hidden_BTD.flatten(0, 1).index_select(0, self.predicting_N)

    @cached_property
    def label_N(self) -> Tensor:
        """Ids of the response tokens, by example and position."""
        return self.input_ids_BT.flatten()[self.predicting_N + 1]

    @property
    def example_N(self) -> Tensor:
        """int64: index of the example that each of the N tokens belongs to."""
        lengths = torch.tensor([len(example.positions) for example in self.examples], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self.examples)), lengths)

    @property
    def weight_N(self) -> Tensor | None:
        """float32: the factor of each token's term in training; None if all are 1."""
        if all(example.weights is None for example in self.examples):
            return None
        parts = [
            np.ones(len(example.positions), np.float32)
            if example.weights is None
            else np.asarray(example.weights, np.float32)[example.positions]
            for example in self.examples
        ]
        return torch.from_numpy(np.concatenate(parts))

    @property
    def keys(self) -> list[tuple[str, int]]:
        """The pairs (example_id, position) of the N tokens."""
        return [(example.example_id, position) for example in self.examples for position in example.positions]


def collate(examples: list[TokenizedExample]) -> Batch:
    """Return the examples, padded on the right to the longest one, with id 0 (any id would do).

    An empty list gives one token without a response, so that a rank without examples can still take part in a step.
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
    """Return all examples in one row without padding, for models for which `models.forward.packing_is_exact`."""
    if not examples:
        return collate(examples)
    ids = np.concatenate([example.input_ids for example in examples])
    # Cast, since a mask of integers would be used as an index.
    response = np.concatenate([example.response_mask for example in examples]).astype(bool)
    positions = np.concatenate([np.arange(len(example.input_ids)) for example in examples])
    # Nothing predicts the first token of a sequence, least of all the sequence before it in the row.
    response = response & (positions > 0)
    ids_BT, response_BT, positions_BT = (
        torch.from_numpy(row)[None] for row in (ids.astype(np.int64), response, positions)
    )
    return Batch(examples, ids_BT, response_BT, positions_BT)


def shards(examples: Iterable[TokenizedExample], tokens: int) -> Iterator[list[TokenizedExample]]:
    """Yield consecutive examples with about `tokens` response tokens per shard.

    A shard is computed and written at a time, so that memory does not grow with the data. Examples come in the order
    of ids, which is the order of the tables; inside a shard they can be batched by length.
    """
    shard: list[TokenizedExample] = []
    rows = 0
    for example in examples:
        shard.append(example)
        rows += len(example.positions)
        if rows >= tokens:
            yield shard
            shard, rows = [], 0
    if shard:
        yield shard


def length_batches(
    examples: list[TokenizedExample], max_tokens: int, num_workers: int = 1, shared_length: int | None = None
) -> Iterator[Batch]:
    """Yield batches for scoring, sorted by length, longest first.

    Args:
        examples: in any order.
        max_tokens: padded tokens per batch; a longer example is a batch of its own.
        num_workers: batches that run at the same time. With more than one, the last batches are smaller, down to a
            quarter, so that all workers finish at about the same time.
        shared_length: longer examples are batches of their own (`models.dynamic_rope.shared_length`).
    """
    ordered = sorted(examples, key=lambda example: (-len(example.input_ids), example.example_id))
    left, start, limit = sum(len(example.input_ids) for example in ordered), 0, max_tokens
    while start < len(ordered):
        if num_workers > 1:
            limit = min(max_tokens, max(max_tokens // 4, left // (2 * num_workers)))
        length = len(ordered[start].input_ids)
        count = 1 if shared_length is not None and length > shared_length else max(1, limit // length)
        taken = ordered[start : start + count]
        yield collate(taken)
        left, start = left - sum(len(example.input_ids) for example in taken), start + len(taken)


class LengthBucketSampler:
    """Batch sampler for training: micro-batches of similar lengths, in an order that depends on (seed, epoch) only.

    A permutation of the examples is cut into buckets of 16 optimiser batches. Each bucket is sorted by length and cut
    into optimiser batches, which are then shuffled. An optimiser batch is several consecutive micro-batches on each of
    `ranks` ranks. The sampler has a generator of its own: with the global one the order would depend on other draws,
    and a resumed run would differ.

    Args:
        lengths: tokens of each example.
        batch_size: examples per optimiser batch, over all ranks.
        micro_batch_size: examples per micro-batch.
        seed: of the order.
        rank: of this process.
        ranks: number of processes.

    Raises:
        ValueError: `batch_size` is not a multiple of `micro_batch_size` times `ranks`.
    """

    BUCKET_BATCHES = 16

    def __init__(
        self, lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ):
        if batch_size % (micro_batch_size * ranks):
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size} times {ranks} ranks"
            )
        self.lengths, self.seed = list(lengths), seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.ranks = rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this before each epoch, and after it resumes."""
        self.epoch = epoch

    def optimiser_batches(self, epoch: int) -> list[list[int]]:
        """Return the indices of the examples of each optimiser batch of `epoch`."""
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        bucket = self.batch_size * self.BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), bucket):
            ordered = sorted(order[start : start + bucket], key=lambda index: -self.lengths[index])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        # A short batch, of which there is at most one, stays last: Trainer accumulates a fixed number of micro-batches.
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        shuffled = torch.randperm(len(full), generator=generator).tolist()
        return [full[i] for i in shuffled] + short

    def _micro_batches(self, batch_size: int) -> list[slice]:
        """Return this rank's parts of an optimiser batch; of a short batch some may be empty."""
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
