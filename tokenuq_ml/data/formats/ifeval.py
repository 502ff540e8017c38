"""Format `ifeval`: instructions that a program can check, as in IF-Eval (Zhou et al. 2023, arXiv 2311.07911).

Examples are prompts only: they have no answer to train on or to score.
"""

from tokenuq_ml.data.formats.conversation import question_alone
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, require_unicode

CHECKED_BY = ("key", "instruction_id_list", "kwargs")


def parse(row: Row) -> ParsedRow:
    """Parse the prompt as the user's turn; `source` holds the fields that the checkers need.

    Raises:
        BrokenRow: a field is missing, or has a shape that the checkers do not accept.
    """
    source = {}
    for name in CHECKED_BY:
        source[name] = row.get(name)
        if name not in row.values and source[name] is None:
            raise BrokenRow("missing field", f"{name!r} is missing")
    ids, kwargs = source["instruction_id_list"], source["kwargs"]
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs) or not ids:
        raise BrokenRow("wrong type", "'instruction_id_list' and 'kwargs' must be lists of one length, not empty")
    if not all(isinstance(name, str) for name in ids) or not all(isinstance(one, dict | None) for one in kwargs):
        raise BrokenRow("wrong type", "'instruction_id_list' must hold text and 'kwargs' objects")
    # In tables every object has every key: null means "not given", as it does for the checkers.
    source["kwargs"] = [one and {key: value for key, value in one.items() if value is not None} for one in kwargs]
    for name, value in source.items():
        require_unicode(value, repr(name))
    return question_alone(row, row.text("prompt"), source)
