"""Small datasets: specs of files in the format `messages` and of reasoning_gym, and files for them."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.row_reader import RowReader

SIZES = {"train": 6, "validation": 2, "test": 4}
GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}


def write_lines(path: Path, rows: Iterable[dict | str]) -> str:
    """Write one row per line; a row of text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str = "Yes.", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def messages_spec(path: str | Path, sizes: dict[str, int] | None = None, **more) -> DatasetSpec:
    return DatasetSpec(name="chats", format="messages", path=str(path), sizes=sizes or {"train": 1}, **more)


def gym_spec(**more) -> DatasetSpec:
    return DatasetSpec(**{"name": "gsm", "format": "reasoning_gym", "task": "gsm_symbolic", "sizes": SIZES, **more})


def by_split(examples: Iterable[Example]) -> dict[str, int]:
    """Count examples by split."""
    return dict(Counter(example.split for example in examples))


def parse_row(format: str, row, kind: str = "json", **keys):
    """Return a row as its format parses it, with further `keys` of its entry in datasets.yaml."""
    spec = DatasetSpec(name="rows", format=format, path="rows.jsonl", sizes={"train": 1}, **keys)
    return RowReader(spec).parse(row, kind)
