"""Format `alpaca`: `{"instruction", "input"?, "output"}`. A non-empty input follows the
instruction after a blank line.
"""

from typing import Any

from tokenuq_ml.data.sources.records import ParsedRow, optional_text, question_and_answer, text_field


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the instruction with its input as the user's turn and the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
    """
    task, given = text_field(row, "instruction"), optional_text(row, "input")
    return question_and_answer(f"{task}\n\n{given}" if given else task, text_field(row, "output"))
