"""Format `messages`: JSONL, a conversation a line: `{"messages": [{"role", "content"}, ...], "split"?, "id"?}`."""

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id
from tokenuq_ml.datasets.locate import json_lines, locate, text_field
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import SPLITS, DatasetSpec


def load(spec: DatasetSpec) -> LoadedExamples:
    """Splits come from the rows where every row names one, else they are drawn.

    Of rows that name their splits the first `sizes` of each are taken.

    Raises:
        InputError: the file is missing, a line is broken, or a split has too few rows.
    """
    path = locate(spec)
    rows = {number: (row, _conversation(row, f"{path}: line {number}")) for number, row in json_lines(path)}
    named = {number: row["split"] for number, (row, _) in rows.items() if "split" in row}
    for number, split in named.items():
        if split not in SPLITS:
            raise InputError(f"{path}: line {number}: split {split!r} is none of {', '.join(SPLITS)}")
    if named and len(named) < len(rows):
        missing = next(number for number in rows if number not in named)
        raise InputError(f"{path}: line {missing}: has no 'split', though other lines do; give one to all or to none")
    if not named:
        splits = draw_splits(spec, list(rows), str(path))
    else:
        splits = {}
        for split, size in spec.sizes.items():
            of_split = [number for number, name in named.items() if name == split]
            if len(of_split) < size:
                raise InputError(f"{path}: holds {len(of_split)} rows of split {split!r}, `sizes` of {spec.name} asks "
                                 f"for {size}; lower `sizes`")
            splits.update(dict.fromkeys(of_split[:size], split))
    return LoadedExamples([
        Example(example_id(spec.name, number), splits[number], rows[number][1],
                {"file": path.name, "line": number, "id": rows[number][0].get("id")})
        for number in sorted(splits)])


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
        raise InputError(f"{where}: roles must be an optional system turn, then user and assistant in turn, ending with "
                         f"the assistant; are {', '.join(roles)}")
    return conversation
