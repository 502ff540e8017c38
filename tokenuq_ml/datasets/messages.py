"""Format `messages`: JSONL, a conversation a line: `{"messages": [{"role", "content"}, ...], "split"?, "id"?}`."""

from pathlib import Path

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id, take_named_splits
from tokenuq_ml.datasets.locate import json_lines, locate, require_unicode, text_field
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import SPLITS, DatasetSpec


def load(spec: DatasetSpec) -> LoadedExamples:
    """Splits come from the rows where every row names one, else they are drawn.

    Raises:
        InputError: the file is missing, a line is broken, or a split has too few rows.
    """
    path = locate(spec)
    examples = [_example(spec, path, number, row) for number, row in json_lines(path)]
    named = [example for example in examples if example.split]
    if not named:
        return draw_splits(spec, examples, str(path))
    if len(named) < len(examples):
        line = next(example.source["line"] for example in examples if not example.split)
        raise InputError(f"{path}: line {line}: has no 'split', though other lines do; give one to all or to none")
    return take_named_splits(spec, examples, str(path))


def _example(spec: DatasetSpec, path: Path, number: int, row: dict) -> Example:
    where = f"{path}: line {number}"
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    source = {"file": path.name, "line": number, "id": row.get("id")}
    require_unicode(source, where)
    return Example(example_id(spec.name, number), split or "", _conversation(row, where), source)


def _conversation(row: dict, where: str) -> list[dict[str, str]]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: 'messages' must be a list of turns, not empty")
    conversation = []
    for index, turn in enumerate(turns):
        at = f"{where}: turn {index + 1}"
        if not isinstance(turn, dict):
            raise InputError(f"{at}: not an object with 'role' and 'content'")
        conversation.append({"role": text_field(turn, "role", at), "content": text_field(turn, "content", at)})
    roles = [turn["role"] for turn in conversation]
    spoken = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or spoken != expected:
        raise InputError(
            f"{where}: roles must be an optional system turn, then user and assistant in turn, ending "
            f"with the assistant; are {', '.join(roles)}"
        )
    return conversation
