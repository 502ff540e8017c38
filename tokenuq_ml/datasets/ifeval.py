"""Format `ifeval`: instructions that a program can check, as in IF-Eval (Zhou et al. 2023, arXiv 2311.07911).

Prompts only: there is no answer to train on or to score.
"""

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id
from tokenuq_ml.datasets.locate import json_lines, locate, require_unicode, text_field
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec

CHECKED_BY = ("key", "instruction_id_list", "kwargs")


def load(spec: DatasetSpec) -> LoadedExamples:
    """The prompt as the user's turn; what the checkers need stands in `source`.

    Raises:
        InputError: the file is missing, or a line is broken.
    """
    path = locate(spec)
    examples = [_example(spec, f"{path}: line {number}", number, row) for number, row in json_lines(path)]
    return draw_splits(spec, examples, str(path))


def _example(spec: DatasetSpec, where: str, number: int, row: dict) -> Example:
    for name in CHECKED_BY:
        if name not in row:
            raise InputError(f"{where}: {name!r} is missing")
    ids, kwargs = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs) or not ids:
        raise InputError(f"{where}: 'instruction_id_list' and 'kwargs' must be lists of one length, not empty")
    if not all(isinstance(name, str) for name in ids) or not all(isinstance(one, dict | None) for one in kwargs):
        raise InputError(f"{where}: 'instruction_id_list' must hold text and 'kwargs' objects")
    source = {name: row[name] for name in CHECKED_BY}
    require_unicode(source, where)
    return Example(
        example_id(spec.name, number), "", [{"role": "user", "content": text_field(row, "prompt", where)}], source
    )
