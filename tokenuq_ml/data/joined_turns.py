"""Rows of a dataset joined into conversations of several turns: its key `turns_joined`.

Rows are drawn for the splits as without the key, as many as the conversations need. Each N consecutive rows of a split,
in the order of the data, become one conversation. Which rows those are follows from the draw, and so from the dataset's
`seed`. No question is in two splits, because none was before.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenuq_ml.config import SPLITS, DatasetSpec
from tokenuq_ml.config.split_sizes import are_counts
from tokenuq_ml.data.examples import Example, Turn, rows_by_split
from tokenuq_ml.data.formats.conversation import SYSTEM_ROLES
from tokenuq_ml.data.loaded_examples import LoadedExamples
from tokenuq_ml.errors import InputError

JOINED = "joined"
"""Key of `source`: the ids that the rows of a conversation would have without `turns_joined`."""


def rows_needed(spec: DatasetSpec) -> DatasetSpec:
    """Return the dataset with counts of `sizes` that are rows instead of conversations."""
    if spec.turns_joined == 1 or spec.sizes == "all" or not are_counts(spec.sizes):
        return spec
    sizes = {split: int(size) * spec.turns_joined for split, size in spec.sizes.items()}
    return spec.model_copy(update={"sizes": sizes})


def join_rows(spec: DatasetSpec, loaded: LoadedExamples) -> LoadedExamples:
    """Join the rows of each split; rows that are too few for another conversation are left out and counted.

    Raises:
        InputError: A split has fewer rows than one conversation needs, or a row cannot follow another one.
    """
    if spec.turns_joined == 1:
        return loaded
    conversations: list[Example] = []
    left = 0
    for split in SPLITS:
        rows = [example for example in loaded.examples if example.split == split]
        complete = len(rows) - len(rows) % spec.turns_joined
        if rows and not complete:
            raise InputError(
                f"dataset {spec.name}: split {split!r} has {len(rows)} rows, and `turns_joined` makes one conversation "
                f"of {spec.turns_joined}; raise its share in `sizes`, or lower `turns_joined`"
            )
        left += len(rows) - complete
        conversations += [_joined(spec, part) for part in _parts(rows, spec.turns_joined)]
    metrics = {
        **loaded.metrics,
        **rows_by_split(conversations),
        "rows_joined": len(loaded.examples) - left,
        **({"rows_not_joined": left} if left else {}),
    }
    return replace(loaded, examples=conversations, metrics=metrics)


def join_conversations(rows: Sequence[list[Turn]], count: int) -> list[list[Turn]]:
    """Return conversations of `count` rows each, of the first rows of a dataset."""
    return [sum(part, []) for part in _parts(rows, count)]


def _parts(rows: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Return the parts of `count` rows, without the last rows if they are fewer."""
    return [rows[start : start + count] for start in range(0, len(rows) - count + 1, count)]


def _joined(spec: DatasetSpec, rows: Sequence[Example]) -> Example:
    """Return one conversation with the id and the source of its first row."""
    first = rows[0]
    for row in rows[1:]:
        _require_follower(spec, first, row)
    messages, weights = sum((row.messages for row in rows), []), None
    if spec.train_on == "last":
        # Each row has its last answer trained alone; of the conversation, only the last one is.
        untrained = [[0.0] * len(row.messages) for row in rows[:-1]]
        weights = sum([*untrained, _weights(rows[-1])], [])
    elif any(row.turn_weights is not None for row in rows):
        weights = sum((_weights(row) for row in rows), [])
    source: dict[str, Any] = {**first.source, JOINED: [row.id for row in rows]}
    return replace(first, messages=messages, turn_weights=weights, source=source)


def _require_follower(spec: DatasetSpec, first: Example, row: Example) -> None:
    """Check that a row can follow the first one in a conversation, which has one system turn and one set of tools."""
    if row.messages[0]["role"] in SYSTEM_ROLES:
        raise InputError(
            f"dataset {spec.name}: {row.id} has a system turn, and `turns_joined` would place it inside a "
            "conversation; leave system texts out by `columns: {system: null}`, or remove `turns_joined`"
        )
    if row.template != first.template:
        raise InputError(
            f"dataset {spec.name}: {row.id} has other tools or arguments of the chat template than {first.id}, and one "
            "conversation has one set of them; leave them out by `columns`, or remove `turns_joined`"
        )


def _weights(row: Example) -> list[float]:
    """Return the weight of each turn."""
    if row.turn_weights is not None:
        return row.turn_weights
    return [float(turn["role"] == "assistant") for turn in row.messages]
