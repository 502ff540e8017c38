"""The rows of a dataset that are left out: counted by reason, listed, and too many of them refused.

Knows neither formats nor splits. The list lies in a temporary file: memory holds the counts and the first few.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.records import Place
from tokenuq_ml.errors import InputError

SHOWN = 50
_IN_ERROR = 3
_IN_MEMORY = 2**22


class Rejects:
    """What was left out, in the order in which it was found."""

    def __init__(self, scratch: str | Path | None = None):
        self.broken: Counter[str] = Counter()
        self.count = 0
        self._first: list[dict] = []
        self._first_broken: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=scratch)

    def add_broken(self, where: str, file: str, place: Place, reason: str, detail: str) -> None:
        """A row that cannot be used; `where` names its file for an error, with the whole path."""
        self.broken[reason] += 1
        if len(self._first_broken) < _IN_ERROR:
            self._first_broken.append(f"{where}: {place}: {detail}")
        self.add(file, place, reason, detail)

    def add(self, file: str, place: Place, reason: str, detail: str) -> None:
        """A row that is left out, maybe though nothing is wrong with it."""
        row = {"number": self.count, "file": file, **place._asdict(), "reason": reason, "detail": detail}
        self.count += 1
        if len(self._first) < SHOWN:
            self._first.append(row)
        self._file.write(json.dumps(row).encode() + b"\n")

    def rows(self) -> Iterator[dict]:
        """Rows of the table `rejected_rows`, all of them."""
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)

    def require_few_broken(self, spec: DatasetSpec, read: int, where: str) -> None:
        """Of `read` rows at most the share that `max_broken_share` allows.

        Raises:
            InputError: more; with the counts and the first of them.
        """
        broken = self.broken.total()
        if broken <= spec.max_broken_share * read:
            return
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in self.broken.most_common())
        raise InputError(
            f"{where}: {broken:,} of {read:,} rows are broken ({kinds}), more than the share of "
            f"{spec.max_broken_share:g} that is let pass: {'; '.join(self._first_broken)}; mend them, or raise "
            f"`max_broken_share:` of {spec.name} in datasets.yaml"
        )

    @property
    def metrics(self) -> dict[str, int | str]:
        """Broken rows by reason, and the first of all that were left out, a line each."""
        counts = {f"broken_{reason.lower().replace(' ', '_')}": count for reason, count in sorted(self.broken.items())}
        shown = [
            f"{row['file']}: {Place(row['row'], row['line'])}: {row['reason']}: {row['detail']}" for row in self._first
        ]
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown):,} more: see the table rejected_rows")
        return {"rows_broken": self.broken.total(), **counts, **({"left_out": "\n".join(shown)} if shown else {})}
