"""Format `alpaca_eval`: `{"instruction", "output", "generator"?}`, as in AlpacaEval with outputs of GPT-4."""

from tokenuq_ml.data.formats.conversation import conversation
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import assistant, user
from tokenuq_ml.data.sources.records import ParsedRow, require_unicode


def parse(row: Row) -> ParsedRow:
    """Parse the instruction as the user's turn and the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
    """
    output_by = row.get("generator")
    require_unicode(output_by, "'generator'")
    turns = [user(row.text("instruction")), assistant(row.text("output"))]
    return conversation(row, turns, {"output_by": output_by})
