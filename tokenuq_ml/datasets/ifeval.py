"""Format `ifeval`: instructions that a program can check, as in IF-Eval (Zhou et al. 2023, arXiv 2311.07911).

Prompts only: there is no answer to train on or to score.
"""

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id
from tokenuq_ml.datasets.locate import json_lines, locate, text_field
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec

CHECKED_BY = ("key", "instruction_id_list", "kwargs")


def load(spec: DatasetSpec) -> LoadedExamples:
    """The prompt as the user's turn; what the checkers need stands in `source`.

    Raises:
        InputError: the file is missing, or a line is broken.
    """
    path = locate(spec)
    rows = dict(json_lines(path))
    splits = draw_splits(spec, list(rows), str(path))
    examples = []
    for number in sorted(splits):
        row, where = rows[number], f"{path}: line {number}"
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs) or not ids:
            raise InputError(f"{where}: 'instruction_id_list' and 'kwargs' must be lists of one length, not empty")
        examples.append(Example(example_id(spec.name, number), splits[number],
                                [{"role": "user", "content": text_field(row, "prompt", where)}],
                                {name: row.get(name) for name in CHECKED_BY}))
    return LoadedExamples(examples)
