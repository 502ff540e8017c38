"""Format `prompt_completion`: `{"prompt", "completion"}`, both text, or both lists of turns as TRL has them."""

from tokenuq_ml.data.formats.messages import turns_of
from tokenuq_ml.data.sources.records import Parsed, question_and_answer, require_turns, text_field


def parse(row: dict) -> Parsed:
    """The prompt as the user's turn, the completion as the assistant's; of lists, one after the other.

    Raises:
        BrokenRow: a field is missing, empty, or neither text nor turns; roles come out of order.
    """
    if isinstance(row.get("prompt"), list):
        messages = [*turns_of(row, "prompt"), *turns_of(row, "completion")]
        require_turns(messages)
        return Parsed(messages, {})
    return question_and_answer(text_field(row, "prompt"), text_field(row, "completion"))
