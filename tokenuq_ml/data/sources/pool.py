"""The usable examples of a source, from which splits are drawn so that no question is in two splits.

Examples are in a temporary file: memory holds 26 bytes per example, and those that are drawn.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenuq_ml.config import SPLITS, DatasetSpec, Split
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.records import RowLocation
from tokenuq_ml.data.sources.rejected_rows import RejectedRows
from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import shuffle_dataset

_IN_MEMORY = 2**25
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_PRIORITY = ("test", "ood", "validation", "train")
"""Which split keeps a question that two parts have: an evaluation split before train."""


@dataclass(frozen=True)
class SplitDraw:
    """Examples with their splits, and the numbers of examples that were rejected."""

    examples: list[Example]
    repeated: int
    """Examples that repeat a question of their part."""
    repeated_conversations: int
    """Those among `repeated` that repeat the complete conversation."""
    in_two_splits: int
    """Examples whose question is in a split with priority."""


class ExamplePool:
    """Examples in the order in which they were added.

    Each belongs to a `part`, which names the splits that it may be drawn for; the part `""` is for every split. Of
    several examples with the same question (`Example.question`) the first is used, and the others are repeats.
    Questions and conversations are compared by 64 bits of their hash.

    Args:
        scratch: folder of the temporary file; default: the system's.
    """

    def __init__(self, scratch: str | Path | None = None):
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if scratch is None else str(scratch))
        self._end = 0
        self._offsets, self._questions, self._conversations = array("Q"), array("Q"), array("Q")
        self._parts = array("H")
        self._part_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they first occurred."""
        return list(self._part_numbers)

    def add(self, example: Example, part: str, file: str, location: RowLocation) -> None:
        """Add an example; `file` and `location` say where it is, in case it is rejected."""
        turns = _encode(example.messages)
        about = [example.id, example.source, example.turn_weights, example.template, file, *location]
        # JSON escapes tabs, so that a tab can be the separator.
        row = f"{_encode(about)}\t{turns}\n".encode()
        self._offsets.append(self._end)
        self._file.write(row)
        self._end += len(row)
        self._questions.append(_hash(example.question))
        self._conversations.append(_hash(turns))
        self._parts.append(self._part_numbers.setdefault(part, len(self._part_numbers)))

    def draw(
        self, spec: DatasetSpec, groups: Mapping[str, Mapping[Split, int]], where: str, rejected: RejectedRows
    ) -> SplitDraw:
        """Draw as many examples for each split as `groups` asks for, and return them in the order added.

        The distinct questions of each part are shuffled, seeded by the dataset's name and seed, and go to the part's
        splits in turn: the same rows on every machine.

        Args:
            spec: the dataset.
            groups: part -> split -> rows.
            where: name of the source, for errors.
            rejected: receives repeats, and questions that a part with priority has as well.

        Raises:
            InputError: a part has fewer distinct questions than `groups` asks for.
        """
        questions, parts = np.frombuffer(self._questions, np.uint64), np.frombuffer(self._parts, np.uint16)
        claimed = np.empty(0, np.uint64)
        repeats: list[NDArray[np.intp]] = []
        shared: list[NDArray[np.intp]] = []
        split_of: dict[int, Split] = {}
        for part in sorted(groups, key=lambda part: min(map(_PRIORITY.index, groups[part]))):
            members = np.flatnonzero(parts == self._part_numbers.get(part, -1))
            distinct, again, first = _firsts(questions[members])
            repeats.append(np.column_stack([members[again], members[first]]))
            elsewhere = np.isin(questions[members[distinct]], claimed)
            shared.append(members[distinct[elsewhere]])
            usable = members[distinct[~elsewhere]]
            claimed = np.concatenate([claimed, questions[usable]])
            split_of.update(_drawn(spec, usable, groups[part], f"{where}: split {part!r}" if part else where))
        repeated, conversations = self._reject_repeats(np.concatenate(repeats), rejected)
        in_two_splits = np.sort(np.concatenate(shared))
        for row in in_two_splits:
            _, file, location = self._read(int(row))
            rejected.add_left_out(file, location, "in two splits", "asks a question that a split held out asks too")
        examples = [replace(self._read(row)[0], split=split_of[row]) for row in sorted(split_of)]
        return SplitDraw(examples, repeated, conversations, len(in_two_splits))

    def _reject_repeats(self, pairs: NDArray[np.intp], rejected: RejectedRows) -> tuple[int, int]:
        """Reject the first row of each pair, which repeats the second; count them, and those with equal conversations.

        Rows are rejected in the order added.
        """
        pairs = pairs[np.argsort(pairs[:, 0])]
        conversations = np.frombuffer(self._conversations, np.uint64)
        equal = conversations[pairs[:, 0]] == conversations[pairs[:, 1]]
        for (row, first), same in zip(pairs, equal, strict=True):
            _, file, location = self._read(int(row))
            _, first_file, first_location = self._read(int(first))
            what = "conversation" if same else "question"
            rejected.add_left_out(
                file, location, f"repeated {what}", f"the same {what} as {first_file}: {first_location}"
            )
        return len(pairs), int(equal.sum())

    def locations(self, part: str) -> Iterator[tuple[str, RowLocation]]:
        """Yield file and location of each example of a part."""
        for row in np.flatnonzero(np.frombuffer(self._parts, np.uint16) == self._part_numbers[part]):
            yield self._read(int(row))[1:]

    def _read(self, row: int) -> tuple[Example, str, RowLocation]:
        self._file.seek(self._offsets[row])
        about, turns = self._file.readline().split(b"\t")
        example_id, source, turn_weights, template, file, *location = json.loads(about)
        example = Example(example_id, "", json.loads(turns), source, turn_weights, template)
        return example, file, RowLocation(*location)


def _drawn(spec: DatasetSpec, usable: NDArray[np.intp], sizes: Mapping[Split, int], where: str) -> dict[int, Split]:
    """Return row -> split, drawn among the `usable` rows."""
    wanted = sum(sizes.values())
    if len(usable) < wanted:
        raise InputError(
            f"{where}: holds {len(usable)} distinct questions, `sizes` of {spec.name} asks for {wanted}; lower `sizes`"
        )
    # Shuffled like a list, but with 4 bytes per row.
    order = array("I", range(len(usable)))
    shuffle_dataset(spec.name, spec.seed, order)
    names = [split for split in SPLITS for _ in range(sizes.get(split, 0))]
    return {int(usable[index]): split for index, split in zip(order, names, strict=False)}


def _firsts(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Find repeated hashes.

    Returns:
        indices of the first occurrence of every hash, in order; indices of the repeats; the first occurrence of each.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    opens = np.ones(len(hashes), bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    starts, others = np.flatnonzero(opens), np.flatnonzero(~opens)
    return np.sort(order[starts]), order[others], order[starts[np.searchsorted(starts, others, side="right") - 1]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
