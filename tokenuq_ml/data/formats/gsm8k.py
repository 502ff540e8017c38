"""Format `gsm8k`: `{"question", "answer"}`, where the answer is worked out and its last line is `#### <number>`.

Answers keep their calculator annotations (`<<48/2=24>>`), as the few-shot examples of lm-eval do. What follows `####`
may be no number (`3/4`, `20%`, `5 apples`): it is trained as written, and counted, because lm-eval's filters extract
numbers only and cannot score it (`evaluation/gsm8k.py`).
"""

import re

from tokenuq_ml.data.formats.conversation import conversation
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.formats.turns import assistant, user
from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow

NOT_NUMBERS = "final_answers_not_numbers"
_FINAL = re.compile(r"^#### *(\S.*?)\s*\Z", re.MULTILINE)
_NUMBER = re.compile(r"\$?-?\$?[0-9.,]*[0-9][0-9.,]*")


def parse(row: Row) -> ParsedRow:
    """Parse the question as the user's turn and the worked answer as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text, or the answer does not end with its number.
    """
    question, answer = row.text("question"), row.text("answer")
    found = _FINAL.search(answer)
    if not found:
        raise BrokenRow("no final answer", "'answer' does not end with a line '#### <number>'")
    row.count(NOT_NUMBERS, not _NUMBER.fullmatch(found.group(1)))
    return conversation(row, [user(question), assistant(answer)], {"final": found.group(1)})
