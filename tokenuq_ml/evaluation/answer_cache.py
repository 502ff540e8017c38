"""What is too dear to make twice, kept from one run to the next: answers and verdicts, as they come.

A JSONL file of the stage's own. Its name is a hash of all that decides the values (which model, which settings),
so that values of two models are never mixed; within it each value is found by a hash of what was asked. Does not
know what the values mean.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenuq_ml.atomic_files import append_line
from tokenuq_ml.config import spec_hash


class AnswerCache:
    """Values by key, in `<folder>/<hash of decided_by>.jsonl`; read at once, added to batch by batch."""

    def __init__(self, folder: str | Path, **decided_by: Any):
        self.path = Path(folder, f"{spec_hash(decided_by)}.jsonl")
        self._values: dict[str, Any] = {}
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    self._values |= json.loads(line)
                except ValueError:
                    # The line of a batch that was being written when the process ended.
                    continue

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def keep(self, values: Mapping[str, Any]) -> None:
        """Add a batch: one line, which counts whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, json.dumps(dict(values)).encode())
        self._values |= values


def key_of(*asked: Any) -> str:
    """The key of what was asked: texts or token ids."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
