"""Format `messages`: one conversation per row, `{"messages": [{"role", "content"}, ...], "split"?, "id"?}`."""

from typing import Any

from tokenuq_ml.config import SPLITS
from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, require_turns, require_unicode, text_field


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse every turn as it is, with the split that the row names.

    Raises:
        BrokenRow: turns are missing, empty or out of order, or the split is unknown.
    """
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise BrokenRow("unknown split", f"split {str(split)[:40]!r} is none of {', '.join(SPLITS)}")
    require_unicode(row.get("id"), "'id'")
    conversation = turns_of(row, "messages")
    require_turns(conversation)
    return ParsedRow(conversation, {"id": row.get("id")}, split or "")


def turns_of(row: dict[str, Any], key: str) -> list[dict[str, str]]:
    """Return the turns in the field `key`, each with role and content.

    Raises:
        BrokenRow: the field is not such a list, or is empty.
    """
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        reason = "missing field" if turns is None else "empty text" if turns == [] else "wrong type"
        raise BrokenRow(reason, f"{key!r} must be a list of turns, not empty")
    conversation = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BrokenRow("wrong type", f"turn {number}: not an object with 'role' and 'content'")
        at = f"turn {number}"
        conversation.append({"role": text_field(turn, "role", at), "content": text_field(turn, "content", at)})
    return conversation
