"""Format `dolly`: `{"instruction", "context"?, "response", "category"?}`. A context follows the
instruction after a blank line.
"""

from tokenuq_ml.data.formats.conversation import question_and_answer
from tokenuq_ml.data.formats.preference import answer
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import ParsedRow


def parse(row: Row) -> ParsedRow:
    """Parse the instruction with its context as the user's turn and the response as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text.
        LeftOutRow: nothing is trained.
    """
    task, context = row.text("instruction"), row.optional("context")
    question = f"{task}\n\n{context}" if context else task
    return question_and_answer(row, question, answer(row, "response"), category=row.optional("category"))
