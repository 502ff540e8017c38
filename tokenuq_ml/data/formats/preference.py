"""Preference pairs, as in DPO: `chosen` is trained, `rejected` is not."""

from typing import Any

from tokenuq_ml.data.examples import Turn
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import assistant, holds_turns, read_turn, turns_of
from tokenuq_ml.data.sources.records import BrokenRow

_REPEATED = 16
"""Characters of a prompt from which two answers that begin with it repeat it on purpose: `Hi` may be one by chance."""
COUNT = "preference_pairs_trained_on_chosen"


def is_pair(row: Row) -> bool:
    """Return whether the row has a chosen and a rejected answer."""
    return row.values.get(row.spec.columns.get("chosen", "chosen") or "") is not None and row.has("rejected")


def answer(row: Row, column: str) -> list[Turn]:
    """Return the answer as turns: the text of a column, or the chosen one of a pair.

    Raises:
        BrokenRow: the answer is missing, empty or not text.
    """
    if row.has(column) or not is_pair(row):
        return [assistant(row.text(column))]
    return chosen_answer(row)


def chosen_answer(row: Row) -> list[Turn]:
    """Return the chosen answer, without what comes before it: text, a turn, or turns."""
    given = row.get("chosen")
    row.count(COUNT)
    if isinstance(given, dict) and not _is_columnar(given):
        return [read_turn(row, given, "'chosen'", "chosen")]
    if isinstance(given, str) and not holds_turns(given) and not given.lstrip().startswith("[{"):
        _require_answer_alone(row, given)
        return [assistant(row.text("chosen"))]
    return turns_of(row, "chosen")


def _require_answer_alone(row: Row, chosen: str) -> None:
    """Check that texts of answers do not begin with the text of their prompt, which would be trained with them.

    Raises:
        BrokenRow: both do.
    """
    rejected = row.get("rejected")
    asked = next((text for key in ("prompt", "instruction") if isinstance(text := row.get(key), str)), "").strip()
    both = isinstance(rejected, str) and all(one.lstrip().startswith(asked) for one in (chosen, rejected))
    if len(asked) >= _REPEATED and both:
        raise BrokenRow(
            "prompt in answer",
            "'chosen' and 'rejected' both begin with the text of the prompt, which would be trained as a part of the "
            "answer; remove it from them",
        )


def pair(row: Row, before: list[Turn]) -> list[Turn]:
    """Return the conversation of a pair: the prompt with weight 0, then the chosen answer.

    Args:
        row: the row.
        before: the prompt; if it is empty, or `chosen` repeats it, the prompt is what `chosen` and `rejected` share,
            as in TRL.

    Raises:
        BrokenRow: `chosen` is text without a prompt, or starts with another prompt.
    """
    turns = chosen_answer(row)
    if turns[0]["role"] == "assistant":
        if not before:
            raise BrokenRow("missing field", "'chosen' has no question before it; give it a 'prompt'")
        return [*untrained(before), *turns]
    if before and [_said(turn) for turn in turns[: len(before)]] != [_said(turn) for turn in before]:
        raise BrokenRow("contradicting fields", "'chosen' starts with another prompt than 'prompt' says")
    rejected = turns_of(row, "rejected")
    shared = next(
        (i for i, (one, other) in enumerate(zip(turns, rejected, strict=False)) if one != other),
        min(len(turns), len(rejected)),
    )
    shared = min(shared, len(turns) - 1)
    return [*untrained(turns[:shared]), *turns[shared:]]


def untrained(turns: list[Turn]) -> list[Turn]:
    """Return the turns with weight 0."""
    return [{**turn, "weight": 0.0} for turn in turns]


def _said(turn: Turn) -> tuple[str, str]:
    return turn["role"], turn["content"]


def _is_columnar(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(column, list) for column in value.values())
