"""Fingerprints of data files that the store keeps in `.fingerprints.json`, so that unchanged files are read once.

A cache: what is damaged is ignored, named once in a sentence, and written again.
"""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.json_files import DamagedFile, damaged, read_json

FILE = ".fingerprints.json"
_REMEDY = "it is ignored, and data files are read again; `tokenuq verify --forget` deletes it"

_said: set[str] = set()


class Fingerprints:
    """The fingerprints that a store keeps."""

    def __init__(self, home: Path):
        self.path = home / FILE

    def get(self, key: str, signature: Sequence[Any]) -> str | None:
        """Return the fingerprint of files with this signature; None if it is not known."""
        entry = self._read().get(key)
        return entry["fingerprint"] if entry is not None and entry["signature"] == signature else None

    def put(self, key: str, signature: Sequence[Any], fingerprint: str | None) -> None:
        """Keep a fingerprint. One that cannot be written is computed again."""
        content = {**self._read(), key: {"signature": signature, "fingerprint": fingerprint}}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path, durable=False) as file:
                file.write(json.dumps(content).encode())

    def damage(self) -> str | None:
        """Return how the file is damaged, and what repairs it; None if it is not."""
        try:
            self._checked()
        except DamagedFile as error:
            return str(error)
        return None

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return self._checked()
        except DamagedFile as error:
            if str(error) not in _said:
                _said.add(str(error))
                print(f"warning: {error}", file=sys.stderr, flush=True)
            return {}

    def _checked(self) -> dict[str, dict[str, Any]]:
        try:
            content = read_json(self.path, _REMEDY)
        except FileNotFoundError:
            return {}
        if not isinstance(content, dict):
            raise damaged(self.path, "does not hold one object", _REMEDY)
        for key, entry in content.items():
            if not (isinstance(entry, dict) and isinstance(entry.get("signature"), list)):
                raise damaged(self.path, f"{key!r} has no signature", _REMEDY)
            if not isinstance(entry.get("fingerprint"), str):
                raise damaged(self.path, f"{key!r} has no fingerprint", _REMEDY)
        return content
