"""Format `dolly`: `{"instruction", "context"?, "response", "category"?}`. A context follows the
instruction after a blank line.
"""

from typing import Any

from tokenuq_ml.data.sources.records import ParsedRow, optional_text, question_and_answer, text_field


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the instruction with its context as the user's turn and the response as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
    """
    task, context = text_field(row, "instruction"), optional_text(row, "context")
    question = f"{task}\n\n{context}" if context else task
    return question_and_answer(question, text_field(row, "response"), category=optional_text(row, "category"))
