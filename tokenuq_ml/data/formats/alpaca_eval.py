"""Format `alpaca_eval`: `{"instruction", "output", "generator"?}`, as in AlpacaEval with outputs of GPT-4."""

from typing import Any

from tokenuq_ml.data.sources.records import ParsedRow, question_and_answer, require_unicode, text_field


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the instruction as the user's turn and the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
    """
    require_unicode(row.get("generator"), "'generator'")
    return question_and_answer(
        text_field(row, "instruction"), text_field(row, "output"), output_by=row.get("generator")
    )
