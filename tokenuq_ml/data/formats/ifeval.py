"""Format `ifeval`: instructions that a program can check, as in IF-Eval (Zhou et al. 2023, arXiv 2311.07911).

Examples are prompts only: they have no answer to train on or to score.
"""

from typing import Any

from tokenuq_ml.data.sources.records import BrokenRow, ParsedRow, require_unicode, text_field

CHECKED_BY = ("key", "instruction_id_list", "kwargs")


def parse(row: dict[str, Any]) -> ParsedRow:
    """Parse the prompt as the user's turn; `source` holds the fields that the checkers need.

    Raises:
        BrokenRow: a field is missing, or has a shape that the checkers do not accept.
    """
    for name in CHECKED_BY:
        if name not in row:
            raise BrokenRow("missing field", f"{name!r} is missing")
    ids, kwargs = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs) or not ids:
        raise BrokenRow("wrong type", "'instruction_id_list' and 'kwargs' must be lists of one length, not empty")
    if not all(isinstance(name, str) for name in ids) or not all(isinstance(one, dict | None) for one in kwargs):
        raise BrokenRow("wrong type", "'instruction_id_list' must hold text and 'kwargs' objects")
    source = {name: row[name] for name in CHECKED_BY}
    # In tables every object has every key: null means "not given", as it does for the checkers.
    source["kwargs"] = [one and {key: value for key, value in one.items() if value is not None} for one in kwargs]
    for name, value in source.items():
        require_unicode(value, repr(name))
    return ParsedRow([{"role": "user", "content": text_field(row, "prompt")}], source)
