"""Text from data and programs inside Markdown metadata, which the UI renders: shown as it is, never interpreted.

An image in a row of a dataset would tell its server who looks at the asset, and a link would look like ours. Markdown
has no library for this direction: what escapes HTML (`html.escape`, `markupsafe`) leaves images, links and tables.
"""

import re

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted

_SPECIAL = re.compile(r"[`*{}\[\]<()#!~&$^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<![\w\\])[-+=](?=\s|$)")
_NAMES = {"<": "&lt;", "&": "&amp;"}
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=[wW]{3})(?=\.)|(?=@)|(?<=mailto)(?=:)|(?<=xmpp)(?=:)")
"""Where words turn into links by themselves, even if their characters are written as entities."""
JOINER = "\u2060"
"""Invisible, and not part of an address."""


def plain(text: str) -> str:
    """Return Markdown that shows one line of text as it is, also in a cell of a table."""
    text = escaped(redacted(text)).replace("\\", "\\\\").replace("|", "\\|")
    return _SPECIAL.sub(lambda found: _NAMES.get(found[0], f"&#{ord(found[0])};"), _ADDRESS.sub(JOINER, text))


def fenced(text: str) -> str:
    """Return a code block of the text. Its fence is longer than every row of backticks inside."""
    text = escaped(redacted(text))
    longest = max((len(row) for row in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
