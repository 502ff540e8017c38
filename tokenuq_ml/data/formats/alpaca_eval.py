"""Format `alpaca_eval`: `{"instruction", "output", "generator"?}`, such as AlpacaEval's with GPT-4's outputs."""

from tokenuq_ml.data.sources.records import Parsed, question_and_answer, require_unicode, text_field


def parse(row: dict) -> Parsed:
    """The instruction as the user's turn, the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or no text.
    """
    require_unicode(row.get("generator"), "'generator'")
    return question_and_answer(
        text_field(row, "instruction"), text_field(row, "output"), output_by=row.get("generator")
    )
