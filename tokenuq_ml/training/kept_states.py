"""Kept parts of a teacher's states: what `TeacherCache` holds of finished shards, copied to files of their own.

The cache's file is one that grows in place and is in the stage's output, which a failed run loses; a copy of a part can
be hashed, and carried to another machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenuq_ml.tables.kept_parts import KeptParts
from tokenuq_ml.training.teacher_cache import TeacherCache

EXAMPLES, STATES = "examples.json", "states.bin"


class KeptStates(KeptParts[Sequence[str]]):
    """Kept states; a unit is a list of the ids of its train examples.

    Args:
        folder: where they are.
        cache: holds the states of each unit when it is put, and gets those of an earlier run.
    """

    def __init__(self, folder: Path, cache: TeacherCache):
        super().__init__(folder)
        self._cache = cache

    def size_of(self, item: Sequence[str]) -> int:
        """Return the bytes of the states of a unit's examples."""
        return self._cache.bytes_of(item)

    def _write(self, folder: Path, items: Sequence[Sequence[str]]) -> None:
        example_ids = [example_id for unit in items for example_id in unit]
        (folder / EXAMPLES).write_text(json.dumps(example_ids))
        with open(folder / STATES, "xb") as file:
            self._cache.copy_rows_to(file, example_ids)

    def _read(self, folder: Path) -> None:
        with open(folder / STATES, "rb") as file:
            self._cache.copy_rows_from(file, json.loads((folder / EXAMPLES).read_text()))
