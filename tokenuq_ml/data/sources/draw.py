"""Rules by which rows are drawn: which rows repeat others, and which go to which split.

Works on hashes and row numbers; knows no examples.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenuq_ml.config import SPLITS, DatasetSpec, Split
from tokenuq_ml.config.split_sizes import apportion, are_counts, check_shares, exact
from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import shuffle_dataset

Rows = NDArray[np.intp]
SplitSizes = Mapping[Split, int | float]
"""Split -> rows: an int is a count, a float a share of the rows that can be drawn."""


def requested_rows(
    spec: DatasetSpec, parts: Sequence[str], drawn_from: Mapping[Split, str] | None = None
) -> tuple[dict[str, SplitSizes], bool]:
    """Return part -> split -> rows to draw, and whether counts are upper limits.

    Splits are drawn from the parts of `drawn_from`; else from the rows that name them, of which `sizes` may take fewer;
    else from all rows. `sizes: all` is a share of 1 of each part; rows without a split go to train.

    Args:
        spec: the dataset.
        parts: the parts of its rows: of `drawn_from`, the splits that rows name, or `""`.
        drawn_from: split -> part, if the source has its own; default: as the configuration says.
    """
    sizes, drawn_from = spec.sizes, drawn_from or spec.drawn_from
    if drawn_from:
        given: SplitSizes = dict.fromkeys(drawn_from, 1.0) if sizes == "all" else sizes
        groups = dict.fromkeys(drawn_from.values())
        return {part: {split: given[split] for split, of in drawn_from.items() if of == part} for part in groups}, False
    named = [split for split in SPLITS if split in parts]
    if not named:
        return {"": {"train": 1.0} if sizes == "all" else sizes}, False
    if sizes == "all":
        return {split: {split: 1.0} for split in named}, True
    return {split: {split: size} for split, size in sizes.items()}, True


@dataclass(frozen=True)
class Repeats:
    """Rows with the same key, as indices into the keys."""

    distinct: Rows
    """The first row of every key, in order."""
    repeated: Rows
    """The other rows."""
    first: Rows
    """The first row with the key of each repeated row."""


def find_repeats(keys: NDArray[np.uint64]) -> Repeats:
    """Find keys that occur more than once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    opens = np.ones(len(keys), bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    starts, others = np.flatnonzero(opens), np.flatnonzero(~opens)
    first = order[starts[np.searchsorted(starts, others, side="right") - 1]]
    return Repeats(np.sort(order[starts]), order[others], first)


@dataclass(frozen=True)
class Shuffled:
    """Rows in the order in which they are drawn: questions are shuffled, and the rows of a question stay together."""

    rows: Rows
    ends: Rows
    """Where each question ends in `rows`."""

    def boundary(self, position: int) -> int:
        """Return where the question ends that `position` cuts; `position` itself if it cuts none."""
        return int(self.ends[np.searchsorted(self.ends, position)]) if position else 0


def shuffle_questions(spec: DatasetSpec, rows: Rows, questions: NDArray[np.uint64]) -> Shuffled:
    """Shuffle rows by question, seeded by the dataset's name and seed: the same order on every machine.

    Args:
        spec: the dataset.
        rows: row numbers, ascending.
        questions: hash of each row's question.
    """
    if spec.duplicates == "question":
        # Every question has one row: the same result with less memory. Shuffled like a list, but with 4 bytes per row.
        order = array("I", range(len(rows)))
        shuffle_dataset(spec.name, spec.seed, order)
        return Shuffled(rows[np.asarray(order, dtype=np.intp)], np.arange(1, len(rows) + 1))
    _, first, question, counts = np.unique(questions, return_index=True, return_inverse=True, return_counts=True)
    # Questions are numbered by their first rows: if each has one row, they are shuffled as rows would be.
    by_first = np.argsort(first)
    number = np.empty_like(by_first)
    number[by_first] = np.arange(len(first))
    order = array("I", range(len(first)))
    shuffle_dataset(spec.name, spec.seed, order)
    shuffled = np.asarray(order, dtype=np.intp)
    place = np.empty_like(shuffled)
    place[shuffled] = np.arange(len(shuffled))
    return Shuffled(rows[np.argsort(place[number[question]], kind="stable")], np.cumsum(counts[by_first][shuffled]))


def draw_splits(
    spec: DatasetSpec, shuffled: Shuffled, sizes: SplitSizes, where: str, at_most: bool = False
) -> dict[int, Split]:
    """Return row -> split: the splits take rows in turn, and no question is in two of them.

    With counts, a split takes exactly that many rows; if the last question has more, its other rows are not drawn.
    With shares (`apportion`), a question goes to the split in which its first row falls, with all its rows.

    Args:
        spec: the dataset, for errors.
        shuffled: the rows to draw from.
        sizes: rows per split.
        where: name of the source, for errors.
        at_most: counts are upper limits.

    Raises:
        InputError: there are too few rows.
    """
    drawn: dict[int, Split] = {}
    total, begin, border = len(shuffled.rows), 0, 0
    splits = [split for split in SPLITS if split in sizes]
    if are_counts(dict(sizes)):
        counts: Mapping[str, int] = {split: int(sizes[split]) for split in splits}
    else:
        try:
            # Rows and folders may name splits, so that a sum above 1 is known only here.
            check_shares(sizes, "the rows")
        except ValueError as error:
            raise InputError(f"{where}: {spec.name}: {error}; lower them in datasets.yaml") from None
        counts = apportion(total, {split: exact(sizes[split]) for split in splits})
    for split in splits:
        if are_counts(dict(sizes)):
            end = begin + counts[split]
            if end > total and (not at_most or begin == total):
                raise _too_few(spec, shuffled, sizes, where)
            end = min(end, total)
            following = shuffled.boundary(end)
        else:
            border += counts[split]
            end = following = shuffled.boundary(border)
            if end == begin:
                raise _too_few(spec, shuffled, sizes, where, split)
        drawn.update(dict.fromkeys(shuffled.rows[begin:end].tolist(), split))
        begin = following
    return drawn


def _too_few(
    spec: DatasetSpec, shuffled: Shuffled, sizes: SplitSizes, where: str, empty: Split | None = None
) -> InputError:
    rows, questions = len(shuffled.rows), len(shuffled.ends)
    holds = f"{rows} distinct questions" if rows == questions else f"{rows} rows of {questions} questions"
    if empty is not None:
        return InputError(
            f"{where}: holds {holds}, and a share of {sizes[empty]:g} of them is no row for split {empty!r}; raise it "
            f"in `sizes` of {spec.name}, or give counts"
        )
    if not rows:
        return InputError(
            f"{where}: no row can be drawn for it; correct the data, or remove it from `sizes` of {spec.name}"
        )
    note = "" if rows == questions else " (all rows of a question go to one split)"
    if spec.turns_joined > 1:
        note += f" ({spec.turns_joined} for each conversation)"
    return InputError(
        f"{where}: holds {holds}, `sizes` of {spec.name} asks for {sum(sizes.values())}{note}; lower `sizes`"
    )


def mixed_counts(spec: DatasetSpec, available: Mapping[str, int], size: int | float, where: str) -> dict[str, int]:
    """Return how many rows of each dataset a split of a mix takes.

    The weights of the datasets that have rows of the split are scaled to a sum of 1 and divide its rows
    (`apportion`). A share is one of the most rows that the weights allow without repeating a row.

    Args:
        spec: the mix.
        available: dataset -> rows of the split that can be drawn, for the datasets that have any in their tables.
        size: rows of the split.
        where: name of the split, for errors.

    Raises:
        InputError: a dataset has fewer rows than its weight asks for.
    """
    assert spec.mix is not None
    weights = {name: exact(spec.mix[name]) for name in sorted(available)}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    if isinstance(size, float):
        most = min(int(available[name] / share) for name, share in shares.items())
        # Rounding up may ask a dataset for a row more than it has.
        while any(count > available[name] for name, count in apportion(most, shares).items()):
            most -= 1
        size = int(most * exact(size))
    counts = apportion(size, shares)
    if not size:
        raise InputError(
            f"{where}: the datasets of the mix have no rows for it; remove the split from `sizes` of {spec.name}"
        )
    for name, count in counts.items():
        if count > available[name]:
            raise InputError(
                f"{where}: dataset {name} has {available[name]} rows for it, and its weight of {spec.mix[name]:g} asks "
                f"for {count} of {size}; lower `sizes` of {spec.name} or the weight, or raise `sizes` of {name}"
            )
    return counts
