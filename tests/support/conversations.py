"""Turns, conversations and tool calls as rows have them."""

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT = {"role": "tool", "content": "3"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add."}}


def turn(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def dialogue(*turns: dict, **more) -> dict:
    return {"messages": list(turns), **more}


def two_answers(first: dict, second: dict) -> dict:
    """Two exchanges with further fields in each answer."""
    return dialogue(
        turn("user", "a"), turn("assistant", "b", **first), turn("user", "c"), turn("assistant", "d", **second)
    )
