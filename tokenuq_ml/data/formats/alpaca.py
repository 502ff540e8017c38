"""Format `alpaca`: `{"instruction", "input"?, "output"}`. An input that is not empty follows after a blank line."""

from tokenuq_ml.data.sources.records import Parsed, optional_text, question_and_answer, text_field


def parse(row: dict) -> Parsed:
    """The instruction with its input as the user's turn, the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or no text.
    """
    task, given = text_field(row, "instruction"), optional_text(row, "input")
    return question_and_answer(f"{task}\n\n{given}" if given else task, text_field(row, "output"))
