"""Load a dataset: read or generate its rows, parse them by its format, and draw examples for each split."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenuq_ml.config import DatasetSpec, Split
from tokenuq_ml.config.split_sizes import are_counts
from tokenuq_ml.data import generated, joined_turns
from tokenuq_ml.data.examples import Example, example_id, rows_by_split
from tokenuq_ml.data.formats import FORMATS, sharegpt
from tokenuq_ml.data.loaded_examples import LoadedExamples
from tokenuq_ml.data.row_reader import RowReader, kind_of
from tokenuq_ml.data.sources import hub, locate, read_file
from tokenuq_ml.data.sources.draw import requested_rows
from tokenuq_ml.data.sources.pool import ExamplePool
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow, Record, TruncatedFile
from tokenuq_ml.data.sources.rejected_rows import RejectedRows
from tokenuq_ml.errors import InputError

PROGRESS_ROWS = 100_000
DEFAULT_HUB_SPLIT = "train"
NO_SPLIT = "missing split"


def load_examples(
    spec: DatasetSpec, scratch: str | Path | None = None, progress: Callable[[str], None] = lambda message: None
) -> LoadedExamples:
    """Read or generate a dataset, as a stream: memory holds the drawn examples and a few bytes per row.

    Args:
        spec: the dataset.
        scratch: folder of temporary files, which are as large as the data; default: the system's.
        progress: called with a line every 100,000 rows.

    Raises:
        InputError: a package or file is missing, too many rows are broken, or there are too few rows.
    """
    if spec.format == "mix":
        raise InputError(f"dataset {spec.name}: is made of other datasets: use load_mix with their tables")
    rows = joined_turns.rows_needed(spec)
    is_generated = spec.format in generated.GENERATED
    loaded = generated.load_generated(rows) if is_generated else _Loader(rows, scratch, progress).load()
    return joined_turns.join_rows(spec, loaded)


def why_unavailable(spec: DatasetSpec) -> str | None:
    """Return which variable, file, package or access is missing to read a dataset; None if none is.

    Does not read or download the dataset.
    """
    if spec.format in generated.GENERATED:
        return generated.why_unavailable(spec)
    if spec.on_hub:
        return hub.why_unavailable(spec)
    return locate.why_missing(spec)


def first_conversations(spec: DatasetSpec, split: Split, count: int) -> list[list[dict[str, str]]]:
    """Return the first `count` conversations of the local files that a split is drawn from, without broken rows.

    Raises:
        InputError: a variable, file or package is missing, or a file holds no such rows.
    """
    rows = _first_rows(spec, split, count * spec.turns_joined)
    return joined_turns.join_conversations(rows, spec.turns_joined)


def _first_rows(spec: DatasetSpec, split: Split, count: int) -> list[list[dict[str, str]]]:
    if spec.format in generated.GENERATED:
        return generated.first_conversations(spec, split, count)
    data, reader = locate.find_files(spec), RowReader(spec)
    found: list[list[dict[str, str]]] = []
    for file in data.parts[(data.drawn_from or {}).get(split, "")]:
        try:
            for record in _records(spec, file):
                with contextlib.suppress(BrokenRow):
                    found.append(reader.parse(record.value, kind_of(file.name)).messages)
                if len(found) == count:
                    return found
        except TruncatedFile:
            continue
    return found


def _records(spec: DatasetSpec, file: Path) -> Iterator[Record]:
    def is_row(value: object) -> bool:
        try:
            RowReader(spec).parse(value)
        except (BrokenRow, LeftOutRow) as error:
            return isinstance(error, LeftOutRow)
        return True

    return read_file.records(spec, file, is_row)


class _Loader:
    """Reader of one dataset: rows go to the pool or to the rejected rows, then splits are drawn from the pool."""

    def __init__(self, spec: DatasetSpec, scratch: str | Path | None, progress: Callable[[str], None]):
        self.spec, self.format, self.progress = spec, FORMATS[spec.format], progress
        self.pool, self.rejected, self.hub = ExamplePool(scratch), RejectedRows(scratch), hub.HubSource(spec)
        self.rows = RowReader(spec)
        self.read, self.trimmed, self.misplaced = 0, 0, 0
        self.truncated: list[str] = []
        self.unread_files: dict[str, int | str] = {}

    def load(self) -> LoadedExamples:
        where = self._read_all()
        if not self.read:
            raise InputError(f"{where}: holds no rows; name a file with examples")
        self._reject_rows_without_split(where)
        self.rejected.require_few_broken(self.spec, self.read, where)
        self._require_parts(where)
        groups, at_most = requested_rows(self.spec, self.pool.parts)
        drawn = self.pool.draw(self.spec, groups, where, self.rejected, at_most)
        fewer = self._fewer_than_sizes(drawn.examples)
        others = {part: sum(1 for _ in self.pool.locations(part)) for part in self.pool.parts if part not in groups}
        undrawn = ", ".join(f"{part} ({count:,})" for part, count in others.items())
        metrics: dict[str, int | str] = {
            **rows_by_split(drawn.examples),
            "rows_read": self.read,
            **drawn.metrics,
            **self.rejected.metrics,
            **self.rows.metrics,
            **self.unread_files,
            **({"rows_naming_another_split": self.misplaced} if self.misplaced else {}),
            **({"splits_not_drawn": undrawn} if undrawn else {}),
            **({"fewer_rows_than_sizes": fewer} if fewer else {}),
            **({"conversations_trimmed": self.trimmed} if self.spec.format == "sharegpt" else {}),
            **({"hub_commit": self.hub.commit} if self.hub.commit else {}),
            **({"truncated": "; ".join(self.truncated)} if self.truncated else {}),
        }
        warnings = self.rows.warnings
        if self.unread_files:
            warnings.append(f"files of the folder that are not read: {self.unread_files['files_not_read']}")
        if fewer:
            warnings.append(f"the rows name fewer rows of a split than `sizes` asks for: {fewer}")
        if self.misplaced:
            warnings.append(
                f"{self.misplaced:,} rows name another split than that of their part; `drawn_from` decides over the "
                "column 'split'"
            )
        return LoadedExamples(drawn.examples, metrics, self.rejected, tuple(warnings))

    def _fewer_than_sizes(self, examples: Sequence[Example]) -> str:
        """Return `train 900 of 1,000` for the splits with fewer rows than their counts; empty if there are none."""
        sizes = self.spec.sizes
        if sizes == "all" or not are_counts(sizes):
            return ""
        drawn = Counter(example.split for example in examples)
        return ", ".join(
            f"{split} {drawn[split]:,} of {size:,}" for split, size in sizes.items() if drawn[split] < size
        )

    def _read_all(self) -> str:
        """Read every part; return the name of the source for messages."""
        spec = self.spec
        if spec.on_hub and spec.file is None:
            for part in dict.fromkeys(spec.drawn_from.values() if spec.drawn_from else [DEFAULT_HUB_SPLIT]):
                where = f"hub dataset {spec.id}, split {part}"
                self._add_records(self.hub.rows(part), part if spec.drawn_from else "", where, f"{spec.id}:{part}", 0)
            return f"hub dataset {spec.id}"
        data = self._find_files()
        for part, files in data.parts.items():
            offset = 0
            for file in files:
                offset = self._add_records(_records(spec, file), part, str(file), data.name(file), offset)
        return str(data.files[0] if len(data.files) == 1 else data.root)

    def _find_files(self) -> locate.DataFiles:
        """Find the files; a folder's own splits become those that are drawn from."""
        if self.spec.on_hub:
            file = self.hub.download_file()
            return locate.DataFiles(file, {"": [file]}, None, {})
        data = locate.find_files(self.spec)
        self.spec = self.spec.model_copy(update={"drawn_from": data.drawn_from or self.spec.drawn_from})
        self.unread_files = data.metrics
        return data

    def _add_records(self, records: Iterator[Record], part: str, where: str, name: str, offset: int) -> int:
        """Add the rows of a file or of a hub split; return the offset of the part's next file.

        Args:
            records: its rows.
            part: the part that splits are drawn from; empty if there is only one.
            where: its name in errors, with the full path.
            name: its name in tables.
            offset: the lines or rows of the part's files before it.
        """
        last = 0
        by_line = self.format.numbered_by_line
        try:
            for record in records:
                number = record.index if record.line is None or not by_line else record.line
                last = number if by_line else number + 1
                self._add_record(record, offset + number, part, where, name)
        except TruncatedFile as cut:
            if self.spec.on_truncated == "fail":
                raise InputError(
                    f"{where}: {cut}; copy the file again, or set `on_truncated: keep` of {self.spec.name} in "
                    "datasets.yaml to use the complete ones"
                ) from None
            self.truncated.append(f"{name} {cut}")
        return offset + last

    def _add_record(self, record: Record, number: int, part: str, where: str, name: str) -> None:
        self.read += 1
        if self.read % PROGRESS_ROWS == 0:
            broken = self.rejected.broken.total()
            self.progress(f"{self.spec.name}: {self.read:,} rows read, {broken:,} of them broken")
        try:
            if isinstance(record.value, BrokenRow):
                raise record.value
            parsed = self.rows.parse(record.value, kind_of(name))
        except LeftOutRow as left_out:
            self.rejected.add_left_out(name, record.location, left_out.reason, str(left_out))
            return
        except BrokenRow as broken:
            self.rejected.add_broken(where, name, record.location, broken.reason, str(broken))
            return
        self.trimmed += sharegpt.TRIMMED in parsed.source
        by_line = self.format.numbered_by_line and record.line
        location = {"line": record.line} if by_line else {"row": record.index + 1}
        source = {"file": name, **location, **parsed.source} if self.format.stores_location else parsed.source
        example = Example(
            example_id(self.spec.name, number, part),
            "",
            parsed.messages,
            source,
            parsed.turn_weights,
            parsed.template,
        )
        # Parts of the configuration have priority over the split that a row names.
        self.misplaced += bool(part and parsed.split and parsed.split not in self._splits_of(part))
        self.pool.add(example, part or parsed.split, name, record.location)

    def _require_parts(self, where: str) -> None:
        """Check that every part of `drawn_from` has rows: in a single file, the rows name their parts."""
        if self.spec.drawn_from is None or not len(self.pool):
            return
        missing = [part for part in self.spec.drawn_from.values() if part not in self.pool.parts]
        if missing:
            named = ", ".join(part for part in self.pool.parts if part)
            said = f"rows name the splits {named}" if named else "rows name no split"
            raise InputError(
                f"{where}: no row belongs to {missing[0]!r}, which `drawn_from` of {self.spec.name} names ({said}); "
                "`drawn_from` tells apart files of a folder by name, or rows by their column 'split': name the folder, "
                "or remove `drawn_from`"
            )

    def _splits_of(self, part: str) -> list[Split]:
        return [split for split, of in (self.spec.drawn_from or {}).items() if of == part]

    def _reject_rows_without_split(self, where: str) -> None:
        """Reject the rows that name no split if others do."""
        if "" not in self.pool.parts or not any(self.pool.parts):
            return
        for file, location in self.pool.locations(""):
            detail = "has no 'split', though other rows do; give one to all or to none"
            path = str(Path(where, file) if Path(where).is_dir() else where)
            self.rejected.add_broken(path, file, location, NO_SPLIT, detail)
