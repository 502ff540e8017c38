"""Format `gsm8k`: `{"question", "answer"}`, the answer worked out, `#### <number>` its last line.

Answers stay as they are, with the calculator's marks (`<<48/2=24>>`): so do lm-eval's few-shot examples.
"""

import re

from tokenuq_ml.data.sources.records import BrokenRow, Parsed, question_and_answer, text_field

_FINAL = re.compile(r"^#### *(-?[0-9.,]+)\s*\Z", re.MULTILINE)


def parse(row: dict) -> Parsed:
    """The question as the user's turn, the worked answer as the assistant's.

    Raises:
        BrokenRow: a field is missing, empty or no text, or the answer does not end with its number.
    """
    question, answer = text_field(row, "question"), text_field(row, "answer")
    found = _FINAL.search(answer)
    if not found:
        raise BrokenRow("no final answer", "'answer' does not end with a line '#### <number>'")
    return question_and_answer(question, answer, final=found.group(1))
