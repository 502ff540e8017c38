"""The rows of a dataset that are not used: counted by reason, listed, and limited in number.

The list is in a temporary file: memory holds the counts and the first rows.
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
        self.count = 0
        self._first: list[dict[str, Any]] = []
        self._first_broken: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if scratch is None else str(scratch))

    def add_broken(self, where: str, file: str, location: RowLocation, reason: str, detail: str) -> None:
        """Add a row that cannot be used; `where` is the full path of its file, for errors."""
        self.broken[reason] += 1
        if len(self._first_broken) < _IN_ERROR:
            self._first_broken.append(f"{where}: {location}: {detail}")
        self.add(file, location, reason, detail)

    def add(self, file: str, location: RowLocation, reason: str, detail: str) -> None:
        """Add a row that is not used, for example because it repeats another."""
        row = {"number": self.count, "file": file, **location._asdict(), "reason": reason, "detail": detail}
        self.count += 1
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
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in self.broken.most_common())
        raise InputError(
            f"{where}: {broken:,} of {read:,} rows are broken ({kinds}), more than the allowed "
            f"share of {spec.max_broken_share:g}: {'; '.join(self._first_broken)}; correct them, or raise "
            f"`max_broken_share:` of {spec.name} in datasets.yaml"
        )

    @property
    def metrics(self) -> dict[str, int | str]:
        """Broken rows by reason, and the first rejected rows, one per line."""
        counts = {f"broken_{reason.lower().replace(' ', '_')}": count for reason, count in sorted(self.broken.items())}
        shown = [
            f"{row['file']}: {RowLocation(row['row'], row['line'])}: {row['reason']}: {row['detail']}"
            for row in self._first
        ]
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown):,} more: see the table rejected_rows")
        return {"rows_broken": self.broken.total(), **counts, **({"left_out": "\n".join(shown)} if shown else {})}
