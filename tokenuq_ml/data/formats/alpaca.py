"""Format `alpaca`: `{"instruction", "input"?, "output"}`, and LLaMA-Factory's `system`?, `history`?, `tools`?.

A non-empty input follows the instruction after a blank line; `context` is another name of it.
"""

from tokenuq_ml.data.formats.conversation import question_and_answer
from tokenuq_ml.data.formats.preference import answer
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import ParsedRow


def parse(row: Row) -> ParsedRow:
    """Parse the instruction with its input as the user's turn and the output as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
        LeftOutRow: nothing is trained.
    """
    task, given = row.text("instruction"), row.first(("input", "context"))
    return question_and_answer(row, f"{task}\n\n{given}" if given else task, answer(row, "output"))
