"""Turns of a conversation: roles, content, reasoning, tool calls and weights, under the names that peers' data use."""

import json
import math
import re
from typing import Any

from tokenuq_ml.data.examples import Turn
from tokenuq_ml.data.formats.row import Row, from_json, without_nulls
from tokenuq_ml.data.sources.records import BrokenRow, check_text, require_unicode

FUNCTION_CALL = "function_call"
"""The role of LLaMA-Factory's turns that call a tool: an assistant's turn whose text is the call."""
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    # OpenAI's newer name; few templates know it.
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "ipython", "function"), "tool"),
    FUNCTION_CALL: FUNCTION_CALL,
}
"""Their role -> ours."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
FLAG_KEYS = ("train", "training", "loss")
"""Whether a turn is trained: `train` as in axolotl, `loss` as in ms-swift. Read only if it is true or false, also as a
word or as 1 or 0: a `loss` may be another number."""
_PYTHON_TURNS = re.compile(r"\s*\[\{'(?:role|from|content|value)': ")
_PASSED_ON = ("tool_call_id", "name")
_KNOWN = {*ROLE_KEYS, *CONTENT_KEYS, *REASONING_KEYS, *_PASSED_ON, "tool_calls", "function_call", "weight"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = ("thinking", "reasoning", "image", "image_url", "input_image", "audio", "input_audio", "video", "file")
_PARTS = frozenset((*_TEXT_PARTS, *_OTHER_PARTS))
_PART_KEYS = frozenset(("type", "annotations", "url", "path", "index", *_PARTS))


def user(content: str) -> Turn:
    """Return a turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """Return a turn of the assistant."""
    return {"role": "assistant", "content": content}


def holds_turns(value: Any) -> bool:
    """Return whether a column that may be text holds turns: a list, an object of lists, or JSON text of turns.

    JSON text counts only if each object has a role and a content: other text that looks like JSON is meant as text.

    Raises:
        BrokenRow: it is text of turns in Python's notation, which would be trained as it is.
    """
    if isinstance(value, str) and _PYTHON_TURNS.match(value):
        raise BrokenRow("not JSON", "turns are written by Python's `str`, which is not JSON: use `json.dumps`")
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
        fields = {*ROLE_KEYS, *CONTENT_KEYS}
        return all(isinstance(turn, dict) and len(fields & turn.keys()) == 2 for turn in value)
    return isinstance(value, list | dict)


def turns_of(row: Row, key: str) -> list[Turn]:
    """Return the turns in a column.

    It holds a list of objects; JSON text of one; or an object of lists, as `datasets` stores lists of objects.

    Raises:
        BrokenRow: the column holds something else or nothing, or a turn is broken.
    """
    given = row.get(key)
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = from_json(given, row.name(key))
    if isinstance(given, dict) and given and all(isinstance(column, list) for column in given.values()):
        if len({len(column) for column in given.values()}) > 1:
            raise BrokenRow("wrong type", f"{row.name(key)} is an object of lists of different lengths")
        given = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if isinstance(given, str):
        raise BrokenRow("wrong type", f"{row.name(key)} is text; it must be a list of turns, or JSON text of one")
    if not isinstance(given, list) or not given:
        reason = "missing field" if given is None else "empty text" if given == [] else "wrong type"
        raise BrokenRow(reason, f"{row.name(key)} must be a list of turns, not empty")
    return [read_turn(row, turn, f"turn {number}", key) for number, turn in enumerate(given, 1)]


def read_turn(row: Row, turn: Any, where: str, column: str) -> Turn:
    """Return a turn with our role and the fields that templates read, and its `weight` if it has one.

    Args:
        row: the row that it is in.
        turn: an object with role and content.
        where: its location inside the row, such as `turn 2`, for errors.
        column: the column that it is in, to name fields that are not read.

    Raises:
        BrokenRow: role or content are missing, unknown, or of another type.
    """
    of_sharegpt = column == "conversations"
    if not isinstance(turn, dict):
        names = "'from' and 'value'" if of_sharegpt else "'role' and 'content'"
        raise BrokenRow("wrong type", f"{where}: not an object with {names}")
    speaker_key = _key(row, turn, "role", ROLE_KEYS, of_sharegpt)
    content_key = _key(row, turn, "content", CONTENT_KEYS, of_sharegpt)
    role = _role(row, turn, speaker_key, where)
    read: Turn = {"role": role, "content": ""}
    content = _parts_of_text(row, turn.get(content_key))
    reasoning, text = content_of(content, f"{where}: {content_key!r}")
    read["content"] = text
    for key in REASONING_KEYS:
        if given := turn.get(key):
            reasoning.append(check_text(given, f"{where}: {key!r}"))
    if reasoning := list(dict.fromkeys(reasoning)):
        read["reasoning_content"] = "\n\n".join(reasoning)
    _add_calls(row, read, turn, where)
    for key in _PASSED_ON:
        if turn.get(key) is not None:
            read[key] = check_text(turn[key], f"{where}: {key!r}")
    weight = _weight(row, turn, read["role"], where)
    if weight is not None:
        read["weight"] = weight
    _require_content(read, turn, content_key, where)
    _note_unread(row, turn, {speaker_key, content_key}, column)
    return read


def _key(row: Row, turn: dict[str, Any], ours: str, known: tuple[str, ...], of_sharegpt: bool) -> str:
    """Return under which key a turn has one of our fields."""
    if mapped := row.spec.columns.get(ours):
        return mapped
    return next((key for key in known if turn.get(key) is not None), known[of_sharegpt])


def _role(row: Row, turn: dict[str, Any], key: str, where: str) -> str:
    if turn.get(key) is None:
        raise BrokenRow("missing field", f"{where}: {key!r} is {'null' if key in turn else 'missing'}")
    speaker = check_text(turn[key], f"{where}: {key!r}")
    role = row.spec.roles.get(speaker) or ROLES.get(speaker.strip().lower())
    if role is None:
        raise BrokenRow(
            "unknown role",
            f"{where}: {key!r} is {speaker[:40]!r}, none of {', '.join(ROLES)}; map it with `roles:` in datasets.yaml",
        )
    return role


def _parts_of_text(row: Row, value: Any) -> Any:
    """Return the parts that a content which is JSON text holds; other values as they are.

    Columns of one type, as in CSV and Parquet, hold parts so. JSON counts only if each object is a part, and no more.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        parts = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not all(isinstance(part, dict) and part.get("type") in _PARTS and part.keys() <= _PART_KEYS for part in parts):
        return value
    row.count("contents_read_from_json_text")
    return parts


def content_of(value: Any, at: str) -> tuple[list[str], str]:
    """Return the reasoning and the text of a turn's content: text, or a list of parts.

    Raises:
        BrokenRow: it is neither, or a part is not text.
    """
    if value is None:
        return [], ""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        return [], check_text(value, at, blank=True)
    reasoning, texts = [], []
    for part in value:
        kind = part.get("type", "text")
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(check_text(part["text"], at, blank=True))
        elif kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
            reasoning.append(check_text(part.get(kind, part.get("text")), at, blank=True))
        else:
            raise BrokenRow("not text", f"{at} has a part of type {str(kind)[:40]!r}; only parts of text are trained")
    return reasoning, "".join(texts)


def _add_calls(row: Row, read: Turn, turn: dict[str, Any], where: str) -> None:
    """Add the turn's tool calls in the shape that chat templates read."""
    calls = turn.get("tool_calls")
    if isinstance(calls, str):
        calls = from_json(calls, f"{where}: 'tool_calls'") if calls.strip() else None
    if not calls and turn.get("function_call") is not None:
        calls = [turn["function_call"]]
    if read["role"] == FUNCTION_CALL:
        read["role"] = "assistant"
        calls = from_json(read["content"], f"{where}: a {FUNCTION_CALL}")
        read["content"], calls = "", calls if isinstance(calls, list) else [calls]
    if not calls:
        return
    if read["role"] != "assistant":
        raise BrokenRow("invalid tool call", f"{where}: only turns of the assistant call tools")
    if not isinstance(calls, list):
        raise BrokenRow("invalid tool call", f"{where}: 'tool_calls' must be a list")
    read["tool_calls"] = [_call(row, call, where) for call in calls]


def _call(row: Row, call: Any, where: str) -> dict[str, Any]:
    """Return a call as `{"type": "function", "function": {"name", "arguments"}}`, with arguments as an object.

    Templates write arguments as JSON: arguments that are JSON text already would be quoted twice.
    """
    if row.kind == "arrow":
        call = without_nulls(call)
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BrokenRow("invalid tool call", f"{where}: a tool call must name a function and its arguments")
    require_unicode(call, f"{where}: a tool call")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and arguments.strip():
        arguments = from_json(arguments, f"{where}: 'arguments' of a tool call")
    return {"type": "function", **call, "function": {**function, "arguments": arguments or {}}}


def _flag(value: Any) -> bool | None:
    """Return a value that says yes or no; None for any other."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)) else None


def _weight(row: Row, turn: dict[str, Any], role: str, where: str) -> float | None:
    """Return the weight that the turn states, as the product of `weight` and its flag; None if it states none."""
    columns = row.spec.columns
    weight = turn.get(columns.get("weight") or "weight")
    if row.kind == "arrow" and weight != weight:
        # pandas keeps missing numbers as NaN.
        weight = None
    keys = dict.fromkeys((columns.get("train") or "", *FLAG_KEYS))
    flags = [flag for key in keys if (flag := _flag(turn.get(key))) is not None]
    if weight is None and not flags:
        return None
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int | float) or not (0 <= weight < math.inf)
    ):
        raise BrokenRow("invalid weight", f"{where}: 'weight' must be a number of at least 0")
    stated = (1.0 if weight is None else float(weight)) * all(flags)
    if stated and role != "assistant":
        raise BrokenRow(
            "invalid weight",
            f"{where}: a turn of role {role!r} is marked for training; only the assistant's turns are trained, so "
            "remove the mark",
        )
    return stated


def _require_content(read: Turn, turn: dict[str, Any], key: str, where: str) -> None:
    """Check that the turn says something; a tool's result and a system turn may be empty."""
    if read["content"].strip() or read["role"] in ("tool", "system", "developer"):
        return
    if read.get("tool_calls") or read.get("reasoning_content"):
        return
    if turn.get(key) is None:
        raise BrokenRow("missing field", f"{where}: {key!r} is {'null' if key in turn else 'missing'}")
    raise BrokenRow("empty text", f"{where}: {key!r} is empty")


def _note_unread(row: Row, turn: dict[str, Any], read: set[str], column: str) -> None:
    mapped = {theirs for ours, theirs in row.spec.columns.items() if ours in ("weight", "train")}
    flags = {key for key in FLAG_KEYS if _flag(turn.get(key)) is not None}
    for keys in (ROLE_KEYS, CONTENT_KEYS):
        # A second name of the same field counts as read only if it says the same.
        values = [turn[key] for key in keys if turn.get(key) is not None]
        if len(values) > 1 and values[0] != values[1]:
            row.unread_turn_fields.update(f"{column}[].{key}" for key in keys if key not in read)
    for key, value in turn.items():
        if value is not None and key not in _KNOWN | read | mapped | flags:
            row.unread_turn_fields.add(f"{column}[].{key}")
