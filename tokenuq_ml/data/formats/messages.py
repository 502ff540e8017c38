"""Format `messages`: one conversation per row, `{"messages": [{"role", "content"}, ...], "split"?, "id"?}`.

Rows of `prompt`?, `chosen` and `rejected` without `messages` are preference pairs.
"""

from tokenuq_ml.data.formats.conversation import conversation
from tokenuq_ml.data.formats.preference import is_pair, pair
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import holds_turns, turns_of, user
from tokenuq_ml.data.sources.records import ParsedRow, require_unicode


def parse(row: Row) -> ParsedRow:
    """Parse every turn as it is.

    Raises:
        BrokenRow: turns are missing, empty or out of order.
        LeftOutRow: nothing is trained.
    """
    source = {"id": row.get("id")}
    require_unicode(source["id"], "'id'")
    if row.get("messages") is None and is_pair(row):
        return conversation(row, pair(row, prompt_turns(row)), source)
    turns = turns_of(row, "messages")
    if turns[-1]["role"] == "user" and is_pair(row):
        turns = pair(row, turns)
    return conversation(row, turns, source)


def prompt_turns(row: Row) -> list[dict]:
    """Return the turns of the column `prompt`, which may be text or turns; empty if there is none."""
    if not row.has("prompt"):
        return []
    return turns_of(row, "prompt") if holds_turns(row.get("prompt")) else [user(row.text("prompt"))]
