"""Escape the characters that control a terminal instead of being shown on it.

A token, a file name or a message of another library may hold them: an escape sequence moves the cursor, sets the
window's title or the clipboard, and a right-to-left override shows a text as another one.
"""

import re

_CONTROLS = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0 with ESC and the carriage return, which overwrites a line; without tab and line feed
    "\x7f-\x9f"  # DEL and C1, whose CSI needs no ESC
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\ud800-\udfff"  # halves of a pair: no encoding can write them
    "]"
)


def escaped(text: str) -> str:
    r"""Return `text` with control characters as escapes (`\x1b`, `\u202e`); line feeds and tabs stay."""
    return _CONTROLS.sub(_escape, text)


def escaped_line(text: str) -> str:
    r"""Return `text` on one line: as `escaped`, with line feeds and tabs as `\n` and `\t` too."""
    return escaped(text).replace("\n", r"\n").replace("\t", r"\t")


def _escape(character: re.Match[str]) -> str:
    code = ord(character[0])
    if character[0] == "\r":
        return r"\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
