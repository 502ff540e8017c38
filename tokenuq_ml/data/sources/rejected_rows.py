"""The rows of a dataset that are not used: counted by reason, listed, and limited in number.

Broken rows cannot be used; rows that are left out could, and a rule says not to: repeats, for example. Only broken rows
are limited. The list is in a temporary file: memory holds the counts and the first rows.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.records import RowLocation
from tokenuq_ml.errors import InputError

SHOWN = 50
_IN_ERROR = 3
_IN_MEMORY = 2**22


class RejectedRows:
    """Rejected rows, in the order in which they were found."""

    def __init__(self, scratch: str | Path | None = None):
        self.broken: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._first: list[dict[str, Any]] = []
        self._first_broken: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if scratch is None else str(scratch))

    def add_broken(self, where: str, file: str, location: RowLocation, reason: str, detail: str) -> None:
        """Add a row that cannot be used; `where` is the full path of its file, for errors."""
        if len(self._first_broken) < _IN_ERROR:
            self._first_broken.append(f"{where}: {location}: {detail}")
        self._add(file, location, reason, detail)
        self.broken[reason] += 1

    def add_left_out(self, file: str, location: RowLocation, rule: str, detail: str) -> None:
        """Add a row that a rule leaves out, for example because it repeats another."""
        self._add(file, location, rule, detail)
        self.left_out[rule] += 1

    @property
    def count(self) -> int:
        """Number of rows, broken or left out."""
        return self.broken.total() + self.left_out.total()

    def _add(self, file: str, location: RowLocation, reason: str, detail: str) -> None:
        row = {"number": self.count, "file": file, **location._asdict(), "reason": reason, "detail": detail}
        if len(self._first) < SHOWN:
            self._first.append(row)
        self._file.write(json.dumps(row).encode() + b"\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows of the table `rejected_rows`."""
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)

    def require_few_broken(self, spec: DatasetSpec, read: int, where: str) -> None:
        """Check that at most a share `max_broken_share` of the `read` rows is broken.

        Raises:
            InputError: more are; the message has the counts and the first rows.
        """
        broken = self.broken.total()
        if broken <= spec.max_broken_share * read:
            return
        raise InputError(
            f"{where}: {broken:,} of {read:,} rows are broken ({counts_in_words(self.broken)}), more than the allowed "
            f"share of {spec.max_broken_share:g}: {'; '.join(self._first_broken)}; correct them, or raise "
            f"`max_broken_share:` of {spec.name} in datasets.yaml"
        )

    @property
    def metrics(self) -> dict[str, int | str]:
        """Broken rows by reason, rows left out by rule, and the first of both, one per line."""
        shown = [
            f"{row['file']}: {RowLocation(row['row'], row['line'])}: {row['reason']}: {row['detail']}"
            for row in self._first
        ]
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown):,} more: see the table rejected_rows")
        return {
            "rows_broken": self.broken.total(),
            **_by_reason("broken", self.broken),
            "rows_left_out": self.left_out.total(),
            **_by_reason("left_out", self.left_out),
            **({"left_out": "\n".join(shown)} if shown else {}),
        }

    @property
    def summary(self) -> str:
        """How many rows are not used, by reason: one sentence."""
        kinds = [("are broken", self.broken), ("are left out", self.left_out)]
        said = (f"{count.total():,} rows {what} ({counts_in_words(count)})" for what, count in kinds if count)
        return ", ".join(said)


def counts_in_words(counts: Counter[str]) -> str:
    """Return `3 empty text, 1 wrong type`, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


def _by_reason(prefix: str, counts: Counter[str]) -> dict[str, int]:
    """Return `<prefix>_<reason>` -> count, in the order of reasons."""
    return {f"{prefix}_{reason.lower().replace(' ', '_')}": count for reason, count in sorted(counts.items())}
