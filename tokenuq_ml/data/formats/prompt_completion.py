"""Format `prompt_completion`: `{"prompt", "completion"}`, both text, or both lists of turns as in TRL.

Only the completion is trained, also if turns of the prompt are the assistant's. Rows of `prompt`?, `chosen` and
`rejected` are preference pairs, and rows of `prompt`, `completion` and `label` those of KTO.
"""

from tokenuq_ml.data.formats.conversation import conversation, question_and_answer
from tokenuq_ml.data.formats.messages import prompt_turns
from tokenuq_ml.data.formats.preference import is_pair, pair, untrained
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import assistant, holds_turns, turns_of
from tokenuq_ml.data.sources.records import ParsedRow


def parse(row: Row) -> ParsedRow:
    """Parse the prompt as the user's turn and the completion as the assistant's; lists of turns are joined.

    A `context` follows a prompt that is text, after a blank line.

    Raises:
        BrokenRow: a field is missing, empty, or neither text nor turns; roles come out of order.
        LeftOutRow: nothing is trained.
    """
    if row.get("completion") is None and is_pair(row):
        return conversation(row, pair(row, prompt_turns(row)), {})
    if holds_turns(row.get("prompt")):
        return conversation(row, [*untrained(turns_of(row, "prompt")), *turns_of(row, "completion")], {})
    prompt, context = row.text("prompt"), row.optional("context")
    question = f"{prompt}\n\n{context}" if context else prompt
    if holds_turns(row.get("completion")):
        return question_and_answer(row, question, turns_of(row, "completion"))
    return question_and_answer(row, question, [assistant(row.text("completion"))])
