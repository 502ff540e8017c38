"""Parts of a measurement that are finished, kept in the stage's folder of checkpoints until the asset is complete.

A stage measures unit by unit: a shard of the data, or a batch. What no unit after it changes is kept every minute and
when the stage fails or is interrupted; the next run takes the kept units as they are and measures the rest. The rows of
a unit do not depend on other units, so that the tables are those of an uninterrupted run.

    parts/00000000-00000012/<table>.parquet    units 0 to 11
    checkpoint-12/COMPLETE                     path -> SHA-256 of the files of all parts up to unit 12, as JSON

The marker is that of a training's checkpoint (`training/checkpoints.py`), so that pruning, and a store in a bucket,
treat both alike. Not the checkpoints of Ray Data: they leave out rows by id where a pipeline ends in a writer of Ray
Data, and a stage on one machine has no pipeline.
"""

import contextlib
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.atomic_files import atomic_write, make_folders, replace_folder
from tokenuq_ml.file_hashes import sha256_of

MARKER, PARTS = "COMPLETE", "parts"
SHORTEST_S, LONGEST_SHARE = 60.0, 0.001
"""Time between two parts: a minute, or this share of the time so far, so that days of work make few files."""
MOST_BYTES = 2**28
"""Size of what is not kept yet at which a part is written before its time. Tables are in memory until then."""

Item = TypeVar("Item")


def interval(elapsed: float) -> float:
    """Return the seconds between two parts of a stage that has worked for `elapsed` seconds."""
    return max(SHORTEST_S, LONGEST_SHARE * elapsed)


@dataclass(frozen=True)
class _Part:
    """Files of consecutive units."""

    first: int
    end: int
    digests: Mapping[str, str]
    """Path relative to the folder of the kept parts -> SHA-256."""

    @property
    def name(self) -> str:
        return f"{self.first:08d}-{self.end:08d}"


class KeptParts(ABC, Generic[Item]):
    """The kept parts of one asset, or of one table. `Keeper` says when they are written.

    Args:
        folder: where they are. Its name hashes everything that affects them.

    Attributes:
        damage: which part of an earlier run is not used, in a sentence; None if all are.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damage: str | None = None
        self._parts: list[_Part] = []

    @abstractmethod
    def size_of(self, item: Item) -> int:
        """Return about how many bytes a unit takes."""

    @abstractmethod
    def _write(self, folder: Path, items: Sequence[Item]) -> None:
        """Write the units of a part into a folder."""

    @abstractmethod
    def _read(self, folder: Path) -> None:
        """Take the units of a part as if they had been measured now."""

    def ends(self) -> list[int]:
        """Return after which unit each part of an earlier run ends, up to the first part that is damaged."""
        self._parts, self.damage = [], None
        listed: dict[str, dict[str, str]] = {}
        for path, digest in self._listed().items():
            listed.setdefault(PurePosixPath(path).parent.name, {})[path] = digest
        end = 0
        for name, digests in sorted(listed.items()):
            first, last = (int(number) if number.isdigit() else -1 for number in (*name.split("-"), "")[:2])
            self.damage = (
                self._damage(digests) if first == end < last else f"{self.folder / PARTS / name}: out of order"
            )
            if self.damage is not None:
                break
            self._parts.append(_Part(first, last, digests))
            end = last
        return [part.end for part in self._parts]

    def take(self, end: int) -> None:
        """Take the parts up to unit `end`, one of `ends()`; forget those after it."""
        self._parts = [part for part in self._parts if part.end <= end]
        for part in self._parts:
            self._read(self.folder / PARTS / part.name)

    def keep(self, first: int, items: Sequence[Item]) -> None:
        """Keep the units from `first`. They are kept once this returns."""
        end, parts = first + len(items), self.folder / PARTS
        make_folders(parts)
        writing = parts / f".{first:08d}-{end:08d}.writing"
        shutil.rmtree(writing, ignore_errors=True)
        try:
            writing.mkdir()
            self._write(writing, items)
            replace_folder(writing, parts / _Part(first, end, {}).name)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        files = sorted((parts / _Part(first, end, {}).name).iterdir())
        digests = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in files}
        self._parts = [part for part in self._parts if part.end <= first] + [_Part(first, end, digests)]
        self._mark(end)

    def _mark(self, end: int) -> None:
        """Write the marker, then delete what it replaces."""
        folder = self.folder / f"checkpoint-{end}"
        make_folders(folder)
        with atomic_write(folder / MARKER) as file:
            file.write(
                json.dumps({path: digest for part in self._parts for path, digest in part.digests.items()}).encode()
            )
        for old in self.folder.glob("checkpoint-*"):
            if old != folder:
                (old / MARKER).unlink(missing_ok=True)
                shutil.rmtree(old)
        names = {part.name for part in self._parts}
        for unlisted in (path for path in (self.folder / PARTS).iterdir() if path.name not in names):
            shutil.rmtree(unlisted, ignore_errors=True)

    def _listed(self) -> dict[str, str]:
        """Return what the last marker lists; nothing without one."""
        markers = [path for path in self.folder.glob(f"checkpoint-*/{MARKER}") if _end_of(path) >= 0]
        if not markers:
            return {}
        last = max(markers, key=_end_of)
        try:
            found = json.loads(last.read_bytes())
            return {str(path): str(digest) for path, digest in found.items()}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            self.damage = f"{last} is not resumed from: {error}"
            return {}

    def _damage(self, digests: Mapping[str, str]) -> str | None:
        for path, digest in digests.items():
            try:
                if sha256_of(self.folder / path) != digest:
                    return f"{self.folder / path} has changed: what follows it is measured again"
            except OSError as error:
                return f"{error}: what follows it is measured again"
        return None


class KeptFrames(KeptParts[Mapping[str, pl.DataFrame]]):
    """Kept rows of tables; a unit has a frame of each table.

    Args:
        folder: where they are.
        take: called with the rows of each kept part, in order, as with those of a unit.
    """

    def __init__(self, folder: Path, take: Callable[[Mapping[str, pl.DataFrame]], None]):
        super().__init__(folder)
        self._take = take

    def size_of(self, item: Mapping[str, pl.DataFrame]) -> int:
        """Return the memory that the rows take."""
        return round(sum(frame.estimated_size() for frame in item.values()))

    def _write(self, folder: Path, items: Sequence[Mapping[str, pl.DataFrame]]) -> None:
        for name in items[0]:
            rows = pl.concat([item[name] for item in items])
            rows.write_parquet(folder / f"{name}.parquet", compression="zstd", compression_level=1)

    def _read(self, folder: Path) -> None:
        self._take({path.stem: pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))})


class Keeper:
    """Keeps the units of a pass, of which one or several assets are made, and resumes it.

    A context manager: units that are not kept yet are kept when the block is left by an exception. Rank 0 alone reads
    and writes.

    Args:
        kept: the kept parts of each asset of the pass; empty: nothing is kept.
        say: called with a sentence.
        name: what is measured, in sentences.
        units: what a unit is called, in the plural.
    """

    def __init__(self, kept: Sequence[KeptParts], say: Callable[[str], None], name: str, units: str = "shards"):
        self._kept, self._say, self._name, self._units = kept, say, name, units
        self._pending: list[tuple[Any, ...]] = []
        self._end = self._bytes = 0
        self._started = self._last = time.monotonic()

    def resume(self) -> int:
        """Take what an earlier run has kept; return how many units that are. Every rank calls this."""
        return process_group.on_main(self._resume)

    def _resume(self) -> int:
        # A pass goes on where all its assets do.
        ends = [set(kept.ends()) for kept in self._kept]
        self._end = max(set.intersection(*ends), default=0) if ends else 0
        for kept in self._kept:
            if kept.damage is not None:
                self._say(f"{self._name}: {kept.damage}")
            kept.take(self._end)
        if self._end:
            self._say(f"{self._name}: resuming after {self._end:,} {self._units}, which an earlier run has measured")
        self._started = self._last = time.monotonic()
        return self._end

    def put(self, *items: Any) -> None:
        """Keep a unit, in a moment: one item for each asset."""
        if not self._kept or not process_group.is_main():
            return
        self._pending.append(items)
        self._bytes += sum(kept.size_of(item) for kept, item in zip(self._kept, items, strict=True))
        now = time.monotonic()
        if self._bytes >= MOST_BYTES or now - self._last >= interval(now - self._started):
            self._keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            # What follows may still fail. A pass of less than a minute keeps nothing.
            if self._pending and self._end:
                self._keep()
            return
        with contextlib.suppress(OSError, MemoryError):
            if self._pending:
                self._keep()
            if self._end:
                kept = f"the first {self._end:,} {self._units} are kept"
                self._say(f"{self._name}: {kept}, and the next run resumes after them")

    def _keep(self) -> None:
        units = self._pending
        for number, kept in enumerate(self._kept):
            kept.keep(self._end, [items[number] for items in units])
        self._end, self._pending, self._bytes = self._end + len(units), [], 0
        self._last = time.monotonic()


def _end_of(marker: Path) -> int:
    """Return the units that a marker's folder names; -1 if it names none."""
    number = marker.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _units_of(name: str) -> tuple[int, int]:
    """Return the first unit and the end that the folder of a part names; -1 for what is no number."""
    first, _, end = name.partition("-")
    return (int(first) if first.isdigit() else -1), (int(end) if end.isdigit() else -1)
