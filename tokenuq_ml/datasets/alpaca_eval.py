"""Format `alpaca_eval`: a JSON list of instructions with outputs, such as AlpacaEval's with GPT-4's."""

import json
from pathlib import Path

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id
from tokenuq_ml.datasets.locate import locate, require_unicode, text_field
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec


def load(spec: DatasetSpec) -> LoadedExamples:
    """The instruction as the user's turn, the output as the assistant's.

    Raises:
        InputError: the file is missing or no JSON list, or a row is broken.
    """
    path = locate(spec)
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: must be a JSON list with at least one row")
    return draw_splits(spec, [_example(spec, path, number, row) for number, row in enumerate(rows)], str(path))


def _example(spec: DatasetSpec, path: Path, number: int, row) -> Example:
    where = f"{path}: row {number + 1}"
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object")
    source = {"file": path.name, "row": number + 1, "output_by": row.get("generator")}
    require_unicode(source, where)
    return Example(
        example_id(spec.name, number),
        "",
        [
            {"role": "user", "content": text_field(row, "instruction", where)},
            {"role": "assistant", "content": text_field(row, "output", where)},
        ],
        source,
    )
