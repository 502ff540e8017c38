"""Format `sharegpt`: `{"conversations": [{"from", "value"}, ...], "id"?}`.

Published copies were cut into parts: many conversations begin with the assistant, or end with the user. They are
trimmed to the turns from the first question to the last answer, and trimmed conversations are counted.
"""

from typing import Any

from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, require_turns, require_unicode, text_field

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}
TRIMMED = "trimmed"
"""The key in `source` with the number of removed turns."""


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse every turn, with the roles that chat templates know.

    Raises:
        BrokenRow: there is no conversation, a speaker is unknown, roles do not alternate, or a turn is empty.
    """
    turns = row.get("conversations")
    if turns is None:
        raise BrokenRow("missing field", "'conversations' is missing")
    if not isinstance(turns, list):
        raise BrokenRow("wrong type", "'conversations' is not a list")
    messages = [_message(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    opening = messages[:1] if messages and messages[0]["role"] == "system" else []
    spoken = messages[len(opening) :]
    while spoken and spoken[0]["role"] == "assistant":
        spoken = spoken[1:]
    while spoken and spoken[-1]["role"] == "user":
        spoken = spoken[:-1]
    if not spoken:
        raise BrokenRow("no exchange", "'conversations' holds no question with an answer")
    require_turns(opening + spoken)
    require_unicode(row.get("id"), "'id'")
    trimmed = len(messages) - len(opening) - len(spoken)
    return ParsedRow(opening + spoken, {"id": row.get("id"), **({TRIMMED: trimmed} if trimmed else {})})


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BrokenRow("wrong type", f"{where}: not an object with 'from' and 'value'")
    speaker = text_field(turn, "from", where)
    role = ROLES.get(speaker.lower())
    if role is None:
        raise BrokenRow("unknown role", f"{where}: 'from' is {speaker[:40]!r}, none of {', '.join(ROLES)}")
    return {"role": role, "content": text_field(turn, "value", where)}
