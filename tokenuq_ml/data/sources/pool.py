"""The usable examples of a source, from which splits are drawn so that no question is in two splits.

Examples are in a temporary file: memory holds 28 bytes per example, and those that are drawn.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenuq_ml.config import DatasetSpec, Split
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.draw import Rows, SplitSizes, draw_splits, find_repeats, mixed_counts, shuffle_questions
from tokenuq_ml.data.sources.records import RowLocation
from tokenuq_ml.data.sources.rejected_rows import RejectedRows

_IN_MEMORY = 2**25
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_STORED = [field.name for field in fields(Example) if field.name != "messages"]
_TRAINED_BY = [name for name in _STORED if name not in ("id", "split", "source")]
"""Fields that decide what is trained, next to the turns."""
_PRIORITY = ("test", "ood", "validation", "train")
"""Which split keeps a question that two parts have: an evaluation split before train."""


@dataclass(frozen=True)
class SplitDraw:
    """Examples with their splits, and the numbers of examples that were rejected."""

    examples: list[Example]
    repeated: int
    """Examples that repeat a question (or a conversation, as `duplicates` says) of their part."""
    repeated_conversations: int
    """Those among `repeated` that repeat the complete conversation."""
    in_two_splits: int
    """Examples whose question is in a split with priority."""

    @property
    def metrics(self) -> dict[str, int | str]:
        """The counts under their names in the asset's metadata."""
        return {
            "duplicate_questions_dropped": self.repeated,
            "duplicate_conversations": self.repeated_conversations,
            "questions_in_two_splits": self.in_two_splits,
        }


class ExamplePool:
    """Examples in the order in which they were added.

    Each belongs to a `part`, which names the splits that it may be drawn for; the part `""` is for every split. Which
    examples repeat another one is decided within a part, by the key `duplicates` of the dataset. No question
    (`Example.question`) is in two splits, whatever that key is. Questions and conversations are compared by 64 bits of
    their hash.

    Args:
        scratch: folder of the temporary file; default: the system's.
    """

    def __init__(self, scratch: str | Path | None = None):
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if scratch is None else str(scratch))
        self._end = 0
        self._offsets, self._questions, self._conversations = array("Q"), array("Q"), array("Q")
        self._parts, self._datasets = array("H"), array("H")
        self._part_numbers: dict[str, int] = {}
        self._dataset_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they first occurred."""
        return list(self._part_numbers)

    def add(self, example: Example, part: str, file: str, location: RowLocation, dataset: str = "") -> None:
        """Add an example.

        Args:
            example: the example.
            part: what it may be drawn for.
            file: where it is, with `location`, in case it is rejected.
            location: its row.
            dataset: in a mix, the dataset that it comes from.
        """
        turns = _encode(example.messages)
        about = [[getattr(example, name) for name in _STORED], file, *location]
        # JSON escapes tabs, so that a tab can be the separator.
        row = f"{_encode(about)}\t{turns}\n".encode()
        self._offsets.append(self._end)
        self._file.write(row)
        self._end += len(row)
        self._questions.append(_hash(example.question))
        # The same turns with other tools are another prompt, with other weights another training example.
        more = [getattr(example, name) for name in _TRAINED_BY]
        self._conversations.append(_hash(f"{turns}\t{_encode(more)}" if any(more) else turns))
        self._parts.append(self._part_numbers.setdefault(part, len(self._part_numbers)))
        self._datasets.append(self._dataset_numbers.setdefault(dataset, len(self._dataset_numbers)))

    def draw(
        self,
        spec: DatasetSpec,
        groups: Mapping[str, SplitSizes],
        where: str,
        rejected: RejectedRows,
        at_most: bool = False,
    ) -> SplitDraw:
        """Draw as many examples for each split as `groups` asks for, and return them in the order added.

        The questions of each part are shuffled, seeded by the dataset's name and seed, and go to the part's splits in
        turn: the same rows on every machine (`draw_splits`). In a mix, those of each dataset are, and the weights say
        how many rows each gives (`mixed_counts`).

        Args:
            spec: the dataset.
            groups: part -> split -> rows.
            where: name of the source, for errors.
            rejected: receives repeats, and examples whose question a part with priority has as well.
            at_most: counts are upper limits.

        Raises:
            InputError: a part has fewer rows than `groups` asks for.
        """
        questions, parts = np.frombuffer(self._questions, np.uint64), np.frombuffer(self._parts, np.uint16)
        keys = {"question": questions, "conversation": np.frombuffer(self._conversations, np.uint64)}.get(
            spec.duplicates
        )
        claimed = np.empty(0, np.uint64)
        repeats: list[NDArray[np.intp]] = []
        shared: list[NDArray[np.intp]] = []
        split_of: dict[int, Split] = {}
        for part in sorted(groups, key=lambda part: min(map(_PRIORITY.index, groups[part]))):
            members = np.flatnonzero(parts == self._part_numbers.get(part, -1))
            distinct = np.arange(len(members))
            if keys is not None:
                found = find_repeats(keys[members])
                repeats.append(np.column_stack([members[found.repeated], members[found.first]]))
                distinct = found.distinct
            elsewhere = np.isin(questions[members[distinct]], claimed)
            shared.append(members[distinct[elsewhere]])
            usable = members[distinct[~elsewhere]]
            claimed = np.concatenate([claimed, questions[usable]])
            split_of.update(self._draw_part(spec, members, usable, groups[part], _named(where, part), at_most))
        repeated, conversations = self._reject_repeats(np.concatenate(repeats), rejected) if repeats else (0, 0)
        in_two_splits = np.sort(np.concatenate(shared))
        for row in in_two_splits:
            _, file, location = self._read(int(row))
            rejected.add_left_out(file, location, "in two splits", "asks a question that a split held out asks too")
        examples = [replace(self._read(row)[0], split=split_of[row]) for row in sorted(split_of)]
        return SplitDraw(examples, repeated, conversations, len(in_two_splits))

    def _draw_part(
        self,
        spec: DatasetSpec,
        members: Rows,
        usable: Rows,
        sizes: SplitSizes,
        where: str,
        at_most: bool,
    ) -> dict[int, Split]:
        """Return row -> split of one part.

        Args:
            spec: the dataset.
            members: the rows of the part.
            usable: those that can be drawn.
            sizes: rows per split.
            where: name of the part, for errors.
            at_most: counts are upper limits.
        """
        questions = np.frombuffer(self._questions, np.uint64)
        if spec.mix is None:
            shuffled = shuffle_questions(spec, usable, questions[usable])
            return draw_splits(spec, shuffled, sizes, where, at_most)
        ((split, size),) = sizes.items()
        datasets = np.frombuffer(self._datasets, np.uint16)
        present = [name for name, number in self._dataset_numbers.items() if (datasets[members] == number).any()]
        rows = {name: usable[datasets[usable] == self._dataset_numbers[name]] for name in present}
        drawn: dict[int, Split] = {}
        for name, count in mixed_counts(spec, {name: len(of) for name, of in rows.items()}, size, where).items():
            shuffled = shuffle_questions(spec, rows[name], questions[rows[name]])
            drawn |= draw_splits(spec, shuffled, {split: count}, f"{where}, dataset {name}")
        return drawn

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
            detail = f"the same {what} as {first_file}: {first_location}"
            rejected.add_left_out(file, location, f"repeated {what}", detail)
        return len(pairs), int(equal.sum())

    def locations(self, part: str) -> Iterator[tuple[str, RowLocation]]:
        """Yield file and location of each example of a part."""
        for row in np.flatnonzero(np.frombuffer(self._parts, np.uint16) == self._part_numbers[part]):
            yield self._read(int(row))[1:]

    def _read(self, row: int) -> tuple[Example, str, RowLocation]:
        self._file.seek(self._offsets[row])
        about, turns = self._file.readline().split(b"\t")
        values, file, *location = json.loads(about)
        example = Example(messages=json.loads(turns), **dict(zip(_STORED, values, strict=True)))
        return example, file, RowLocation(*location)


def _named(where: str, part: str) -> str:
    return f"{where}: split {part!r}" if part else where


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
