"""Format `sharegpt`: `{"conversations": [{"from", "value"}, ...], "id"?}`, and LLaMA-Factory's `system`?, `tools`?.

Published copies were cut into parts: many conversations begin with the assistant, or end with the user. They are
trimmed to the turns from the first question to the last answer, and trimmed conversations are counted.
"""

from tokenuq_ml.data.formats.conversation import conversation
from tokenuq_ml.data.formats.preference import is_pair, pair
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import turns_of
from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, require_unicode

TRIMMED = "trimmed"
"""The key in `source` with the number of removed turns."""


def parse(row: Row) -> ParsedRow:
    """Parse every turn, with the roles that chat templates know.

    Raises:
        BrokenRow: there is no conversation, a speaker is unknown, roles do not alternate, or a turn is empty.
        LeftOutRow: nothing is trained.
    """
    given = row.get("conversations")
    if given is None:
        raise BrokenRow("missing field", f"{row.name('conversations')} is missing")
    if given == []:
        raise BrokenRow("no exchange", "'conversations' holds no question with an answer")
    turns = turns_of(row, "conversations")
    source = {"id": row.get("id")}
    require_unicode(source["id"], "'id'")
    if turns[-1]["role"] == "user" and is_pair(row):
        return conversation(row, pair(row, turns), source)
    return conversation(row, turns, source, trim=True)
