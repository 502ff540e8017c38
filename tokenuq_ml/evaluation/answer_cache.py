"""On-disk cache of generated answers and judge verdicts, so that an interrupted evaluation resumes.

A JSONL file per model and settings: its name is a hash of everything that decides the values, so that the values of two
models are never mixed. Within the file, a value is found by a hash of what was asked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenuq_ml import process_group
from tokenuq_ml.atomic_files import append_line
from tokenuq_ml.config import spec_hash


class AnswerCache:
    """Values by key, in `<folder>/<hash of decided_by>.jsonl`; read once, and appended to batch by batch."""

    def __init__(self, folder: str | Path, **decided_by: Any):
        self.path = Path(folder, f"{spec_hash(decided_by)}.jsonl")
        self._values: dict[str, Any] = {}
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    self._values |= json.loads(line)
                except ValueError:
                    # The process ended while it wrote this line.
                    continue

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, values: Mapping[str, Any]) -> None:
        """Append a batch as one line; an incomplete line is ignored when the file is read. Rank 0 alone writes."""
        if process_group.is_main():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(dict(values)).encode())
        self._values |= values


def key_of(*asked: Any) -> str:
    """Return the key of what was asked: texts or token ids."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
