"""Format `gsm8k`: `{"question", "answer"}`, where the answer is worked out and its last line is `#### <number>`.

Answers keep their calculator annotations (`<<48/2=24>>`), as the few-shot examples of lm-eval do.
"""

import re
from typing import Any

from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, question_and_answer, text_field

_FINAL = re.compile(r"^#### *(-?[0-9.,]+)\s*\Z", re.MULTILINE)


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the question as the user's turn and the worked answer as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or not text, or the answer does not end with its number.
    """
    question, answer = text_field(row, "question"), text_field(row, "answer")
    found = _FINAL.search(answer)
    if not found:
        raise BrokenRow("no final answer", "'answer' does not end with a line '#### <number>'")
    return question_and_answer(question, answer, final=found.group(1))
