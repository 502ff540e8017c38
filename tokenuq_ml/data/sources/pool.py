"""The usable examples of a source, from which splits are drawn without any question in two of them.

Examples lie in a temporary file; memory holds 26 bytes each, and those drawn. Knows neither files nor formats.
"""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenuq_ml.config import SPLITS, DatasetSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.records import Place
from tokenuq_ml.data.sources.rejected_rows import Rejects
from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import shuffle_dataset

_IN_MEMORY = 2**25
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_HELD_OUT = ("test", "ood", "validation", "train")
"""Whose rows stay where two parts share a question: what is measured on must not have been trained on."""


@dataclass(frozen=True)
class Drawn:
    """Examples with their splits, and how many were left out: repeats (of these whole conversations), and shared."""

    examples: list[Example]
    repeated: int
    repeated_whole: int
    shared: int


class Pool:
    """Examples in the order added. `part` is what they may be drawn for, `""` for every split.

    Of examples with one question (`Example.question`) the first counts, the others are repeats. Questions and
    conversations are told apart by 64 bits of their hash.
    """

    def __init__(self, scratch: str | Path | None = None):
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=scratch)
        self._end = 0
        self._offsets, self._questions, self._conversations = array("Q"), array("Q"), array("Q")
        self._parts, self._part_names = array("H"), {}

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order in which they first came."""
        return list(self._part_names)

    def add(self, example: Example, part: str, file: str, place: Place) -> None:
        """Takes an example in; `file` and `place` say where to find it, should it be left out."""
        said = _encode([[turn["role"], turn["content"]] for turn in example.messages])
        # JSON writes a tab as an escape: a bare one divides.
        row = f"{_encode([example.id, example.source, file, *place])}\t{said}\n".encode()
        self._offsets.append(self._end)
        self._file.write(row)
        self._end += len(row)
        self._questions.append(_hash(example.question))
        self._conversations.append(_hash(said))
        self._parts.append(self._part_names.setdefault(part, len(self._part_names)))

    def draw(self, spec: DatasetSpec, groups: dict[str, dict[str, int]], where: str, rejects: Rejects) -> Drawn:
        """As many examples for each split as `groups` (part -> split -> rows) asks for, in the order added.

        The first of a shuffle seeded by the dataset's name and seed, split by split, of each part's distinct
        questions: the same rows on any machine. Repeats, and questions that a part with a stronger claim has
        too, go to `rejects`.

        Raises:
            InputError: a part has fewer distinct questions than are asked of it.
        """
        questions = np.frombuffer(self._questions, np.uint64)
        parts = np.frombuffer(self._parts, np.uint16)
        conversations = np.frombuffer(self._conversations, np.uint64)
        claimed, repeats, shared = np.empty(0, np.uint64), [], []
        split_of: dict[int, str] = {}
        for part in sorted(groups, key=lambda part: min(map(_HELD_OUT.index, groups[part]))):
            members = np.flatnonzero(parts == self._part_names.get(part, -1))
            distinct, again, first = _firsts(questions[members])
            repeats.append(np.column_stack([members[again], members[first]]))
            elsewhere = np.isin(questions[members[distinct]], claimed)
            shared.append(members[distinct[elsewhere]])
            usable = members[distinct[~elsewhere]]
            claimed = np.concatenate([claimed, questions[usable]])
            split_of.update(_drawn(spec, usable, groups[part], f"{where}: split {part!r}" if part else where))
        pairs, shared = np.concatenate(repeats), np.sort(np.concatenate(shared))
        pairs = pairs[np.argsort(pairs[:, 0])]
        whole = conversations[pairs[:, 0]] == conversations[pairs[:, 1]]
        for (row, first), same in zip(pairs, whole, strict=True):
            _, file, place = self._read(row)
            _, first_file, first_place = self._read(first)
            what = "conversation" if same else "question"
            rejects.add(file, place, f"repeated {what}", f"the same {what} as {first_file}: {first_place}")
        for row in shared:
            _, file, place = self._read(row)
            rejects.add(file, place, "in two splits", "asks a question that a split held out asks too")
        examples = [replace(self._read(row)[0], split=split_of[row]) for row in sorted(split_of)]
        return Drawn(examples, len(pairs), int(whole.sum()), len(shared))

    def places(self, part: str) -> Iterator[tuple[str, Place]]:
        """File and place of each example of a part."""
        for row in np.flatnonzero(np.frombuffer(self._parts, np.uint16) == self._part_names[part]):
            yield self._read(row)[1:]

    def _read(self, row: int) -> tuple[Example, str, Place]:
        self._file.seek(self._offsets[row])
        about, said = self._file.readline().split(b"\t")
        example_id, source, file, *place = json.loads(about)
        messages = [{"role": role, "content": content} for role, content in json.loads(said)]
        return Example(example_id, "", messages, source), file, Place(*place)


def _drawn(spec: DatasetSpec, usable: np.ndarray, sizes: dict[str, int], where: str) -> dict[int, str]:
    """Row -> split."""
    wanted = sum(sizes.values())
    if len(usable) < wanted:
        raise InputError(
            f"{where}: holds {len(usable)} distinct questions, `sizes` of {spec.name} asks for {wanted}; lower `sizes`"
        )
    # Shuffled as a list would be, at 4 bytes a row.
    order = array("I", range(len(usable)))
    shuffle_dataset(spec.name, spec.seed, order)
    names = [split for split in SPLITS for _ in range(sizes.get(split, 0))]
    return {int(usable[index]): split for index, split in zip(order, names, strict=False)}


def _firsts(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of equal hashes the first: places of all firsts in order; places of the others; the first of each of these."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    opens = np.ones(len(hashes), bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    starts, others = np.flatnonzero(opens), np.flatnonzero(~opens)
    return np.sort(order[starts]), order[others], order[starts[np.searchsorted(starts, others, side="right") - 1]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
