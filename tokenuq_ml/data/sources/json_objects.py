"""JSON files whose rows are not at the top level: one object that holds lists."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.data.sources import json_records
from tokenuq_ml.data.sources.data_stream import open_lines
from tokenuq_ml.data.sources.json_window import EndOfFile, Window, is_cut_off
from tokenuq_ml.data.sources.records import TruncatedFile
from tokenuq_ml.errors import InputError

_TURNS = {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "history", "tools"}
"""Keys of rows that hold lists of objects; such a list is not a list of rows."""
_ROWS, _TURN_LIST, _NESTED = "rows", "turns", "nested"
_SHOWN = 10


@dataclass(frozen=True)
class SingleObject:
    """The only value of a JSON file, which is an object."""

    keys: list[str]
    lists: list[str]
    """Keys that hold a list of objects, but no list of turns."""
    is_nested: bool
    """Whether it holds an object, or a list of anything but turns: rows do so too."""
    on_one_line: bool

    def problem(self, name: str) -> str:
        """Return what to do about it; `name` is the dataset's name."""
        keys = ", ".join(self.keys[:_SHOWN]) + (", ..." if len(self.keys) > _SHOWN else "")
        what, where = f"is one JSON object (keys: {keys}), and no list of rows", f"of {name} in datasets.yaml"
        if len(self.lists) == 1:
            return f"{what}; if its key {self.lists[0]!r} holds the rows, set `field: {self.lists[0]}` {where}"
        if self.lists:
            lists = ", ".join(self.lists)
            return f"{what}; name the key that holds the rows as `field:` {where}: {lists}"
        return f"{what}; write one object per line, or one list of objects"


def single_object(path: Path) -> SingleObject | None:
    """Return the object if a file holds nothing else; None if it holds a list, or one object per line.

    Reads one record.

    Raises:
        InputError: objects extend over several lines, and there are several.
        TruncatedFile: the file ends inside the object.
    """
    with open_lines(path) as file:
        lines = (line for line in json_records.lines(file) if line is None or line.strip())
        first, second = next(lines, b""), next(lines, b"")
    if first is not None and not first.lstrip().startswith(b"{"):
        return None
    if second and second.lstrip().startswith(b"{"):
        return None
    if first and second and not _is_cut_off(first):
        return None
    with open_lines(path) as file:
        window = Window(file)
        window.next()
        try:
            found = _keys(window)
        except EndOfFile as end:
            if not second:
                return None
            raise TruncatedFile(f"line 1 (byte {end.byte:,})", 0) from None
        if window.next() != "}":
            return None
        window.move(window.at + 1)
        if window.next():
            if not second:
                return None
            raise InputError(
                f"{path}: line {window.line}: holds several JSON objects that extend over lines; write one object per "
                "line, or one list of objects"
            )
    lists = [key for key, holds in found.items() if holds == _ROWS]
    return SingleObject(list(found), lists, bool({_ROWS, _NESTED} & set(found.values())), not second)


def _keys(window: Window) -> dict[str, str]:
    """Return key -> what it holds: `_ROWS`, `_TURN_LIST`, `_NESTED` or nothing of these."""
    found = {}
    for key, opens in window.keys():
        if opens == "[" and window.opens_list_of_objects():
            found[key] = _TURN_LIST if key in _TURNS else _ROWS
        else:
            found[key] = _NESTED if opens in "[{" else ""
    return found


def _is_cut_off(line: bytes) -> bool:
    """Return whether more text could make a line complete."""
    text = line.decode("utf-8", "surrogateescape")
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return is_cut_off(error, text)
    return False
