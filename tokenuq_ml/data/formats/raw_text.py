"""Format `raw_text`: `{"text"}`, or paragraphs of a text file. No conversation: every token is trained."""

from tokenuq_ml.data.examples import TEXT_ROLE
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import ParsedRow


def parse(row: Row) -> ParsedRow:
    """Parse the text as one turn of the role `text`, which no chat template sees.

    Raises:
        BrokenRow: the text is missing, empty, too long, or not text.
    """
    return ParsedRow([{"role": TEXT_ROLE, "content": row.text("text")}], {})
