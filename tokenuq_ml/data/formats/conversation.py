"""From turns to a parsed row: system text, empty and merged turns, the order of roles, weights and tools."""

from typing import Any

from tokenuq_ml.data.examples import QUESTION_TURN, TURN_FIELDS, Turn
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import assistant, read_turn, user
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow, ParsedRow, require_unicode

SYSTEM_COLUMNS = ("system", "system_prompt")
SYSTEM_ROLES = ("system", "developer")
"""`developer` occurs only if `roles` maps to it, for templates that know it."""
_ASKS = "asks"
"""Mark of the turn that asks, after a history."""
REASONING_COLUMNS = ("reasoning_content", "thinking")
NEXT_ROLES = {
    **dict.fromkeys(SYSTEM_ROLES, {"user"}),
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
"""Role -> roles of the turn after it."""


def conversation(row: Row, turns: list[Turn], source: dict[str, Any], trim: bool = False) -> ParsedRow:
    """Return the parsed row of some turns, with the system text, tools and weights that the row states.

    Args:
        row: the row.
        turns: as `read_turn` returns them.
        source: fields of the example's `source`.
        trim: cut turns before the first question and after the last answer, counted in `source` as `trimmed`.

    Raises:
        BrokenRow: roles come out of order, or a field contradicts another.
        LeftOutRow: every turn of the assistant has weight 0.
    """
    spoken = [turn for turn in turns if turn["role"] not in SYSTEM_ROLES or turn["content"].strip()]
    row.count("empty_system_turns", len(turns) - len(spoken))
    spoken = _with_system(row, spoken)
    if row.spec.merge_turns:
        spoken = _merged(row, spoken)
    if trim:
        before, spoken = len(spoken), _trimmed(spoken)
        source = {**source, **({"trimmed": before - len(spoken)} if before > len(spoken) else {})}
    _require_order(spoken)
    messages = [{key: turn[key] for key in TURN_FIELDS if key in turn} for turn in spoken]
    weights = _weights(row, spoken)
    return ParsedRow(messages, {**source, **_question(spoken, weights)}, turn_weights=weights, template=_template(row))


def question_and_answer(row: Row, question: str, answer: list[Turn], **source: Any) -> ParsedRow:
    """Return a conversation of earlier turns (`history`), a question, and its answer with the row's reasoning."""
    if reasoning := row.first(REASONING_COLUMNS):
        own = answer[-1].setdefault("reasoning_content", reasoning)
        if own != reasoning:
            raise BrokenRow("contradicting fields", "the answer and its row have different reasoning")
    return conversation(row, [*_history(row), {**user(question), _ASKS: True}, *answer], source)


def question_alone(row: Row, question: str, source: dict[str, Any]) -> ParsedRow:
    """Return a question without an answer, with the row's system text and tools."""
    return ParsedRow(_with_system(row, [user(question)]), source, template=_template(row))


def _with_system(row: Row, turns: list[Turn]) -> list[Turn]:
    text = row.first(SYSTEM_COLUMNS)
    if not text:
        return turns
    if turns[:1] and turns[0]["role"] in SYSTEM_ROLES:
        if turns[0]["content"] != text:
            raise BrokenRow("contradicting fields", "'system' and the system turn have different texts")
        return turns
    return [{"role": "system", "content": text}, *turns]


def _history(row: Row) -> list[Turn]:
    """Return the turns before the question: pairs of question and answer (LLaMA-Factory), or turns."""
    turns: list[Turn] = []
    for number, one in enumerate(row.json("history", list) or [], 1):
        where = f"'history' {number}"
        if isinstance(one, dict):
            turns.append(read_turn(row, one, where, "history"))
            continue
        if (
            not isinstance(one, list)
            or len(one) != 2
            or not all(isinstance(text, str) and text.strip() for text in one)
        ):
            raise BrokenRow("wrong type", f"{where}: must be a pair of question and answer, or a turn")
        require_unicode(one, where)
        turns += [user(one[0]), assistant(one[1])]
    return turns


def _merged(row: Row, turns: list[Turn]) -> list[Turn]:
    """Join consecutive turns of one role, with an empty line between their texts; a tool's results stay apart."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is None or last["role"] != turn["role"] or turn["role"] == "tool":
            merged.append(dict(turn))
            continue
        if last.get("weight") != turn.get("weight"):
            raise BrokenRow("contradicting fields", "turns to be merged (`merge_turns`) have different weights")
        row.count("turns_merged")
        for key in ("content", "reasoning_content"):
            if texts := [text for one in (last, turn) if (text := one.get(key))]:
                last[key] = "\n\n".join(texts)
        if calls := [*last.get("tool_calls", []), *turn.get("tool_calls", [])]:
            last["tool_calls"] = calls
        if turn.get(_ASKS):
            last[_ASKS] = True
    return merged


def _trimmed(turns: list[Turn]) -> list[Turn]:
    opening = turns[:1] if turns and turns[0]["role"] in SYSTEM_ROLES else []
    spoken = turns[len(opening) :]
    while spoken and spoken[0]["role"] not in ("user", *SYSTEM_ROLES):
        spoken = spoken[1:]
    while spoken and spoken[-1]["role"] in ("user", "tool"):
        spoken = spoken[:-1]
    if not spoken:
        raise BrokenRow("no exchange", "the conversation holds no question with an answer")
    return opening + spoken


def _require_order(turns: list[Turn]) -> None:
    """Check that roles are an optional system turn, then user and assistant in turn, ending with the assistant."""
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles and roles[0] in SYSTEM_ROLES else roles
    follows = all(second in NEXT_ROLES[first] for first, second in zip(spoken, spoken[1:], strict=False))
    if spoken and spoken[0] == "user" and spoken[-1] == "assistant" and follows:
        return
    shown = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
    repeats = any(first == second != "tool" for first, second in zip(roles, roles[1:], strict=False))
    raise BrokenRow(
        "roles out of order",
        "roles must be an optional system turn, then user and assistant in turn, with results of tools after an "
        f"assistant's turn, ending with the assistant; are {shown}"
        + ("; `merge_turns: true` joins consecutive turns of one role" if repeats else ""),
    )


def _question(turns: list[Turn], weights: list[float] | None) -> dict[str, int]:
    """Return which turn asks, if it is not the user's first: that after a history, or before the first trained answer.

    Otherwise all rows with the same examples before their questions would count as one question.
    """
    asking = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    marked = [number for number in asking if turns[number].get(_ASKS)]
    if marked or weights is None:
        asked = marked[-1] if marked else asking[0]
    else:
        trained = next(number for number, weight in enumerate(weights) if weight)
        asked = max(number for number in asking if number < trained)
    return {} if asked == asking[0] else {QUESTION_TURN: asked}


def _weights(row: Row, turns: list[Turn]) -> list[float] | None:
    """Return the weight of each turn; None if each of the assistant's has weight 1.

    Raises:
        LeftOutRow: all weights are 0.
    """
    default = [float(turn["role"] == "assistant") for turn in turns]
    weights = [turn.get("weight", usual) for turn, usual in zip(turns, default, strict=True)]
    if row.spec.train_on == "last":
        weights = [*[0.0] * (len(weights) - 1), weights[-1]]
    if not any(weights):
        raise LeftOutRow("nothing trained", "every answer has weight 0")
    return None if weights == default else weights


def _template(row: Row) -> dict[str, Any]:
    """Return what the row gives the chat template besides turns."""
    tools = row.json("tools", list) or row.json("functions", list)
    given = {"tools": tools and [_tool(tool) for tool in tools]}
    given["chat_template_kwargs"] = row.json("chat_template_kwargs", dict)
    template = {key: value for key, value in given.items() if value}
    if template:
        require_unicode(template, "'tools' or 'chat_template_kwargs'")
    return template


def _tool(tool: Any) -> dict[str, Any]:
    """Return a tool as `{"type": "function", "function": {"name", ...}}`, which templates and transformers read."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return tool
    if isinstance(tool, dict) and isinstance(tool.get("name"), str):
        return {"type": "function", "function": tool}
    raise BrokenRow("invalid tool", "'tools' must hold descriptions of functions, each with a 'name'")
