"""Format `prompt_completion`: `{"prompt", "completion"}`, both text, or both lists of turns as in TRL."""

from typing import Any

from tokenuq_ml.data.formats.messages import turns_of
from tokenuq_ml.data.sources.records import ParsedRow, question_and_answer, require_turns, text_field


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the prompt as the user's turn and the completion as the assistant's; lists of turns are joined.

    Raises:
        BrokenRow: a field is missing, empty, or neither text nor turns; roles come out of order.
    """
    if isinstance(row.get("prompt"), list):
        messages = [*turns_of(row, "prompt"), *turns_of(row, "completion")]
        require_turns(messages)
        return ParsedRow(messages, {})
    return question_and_answer(text_field(row, "prompt"), text_field(row, "completion"))
