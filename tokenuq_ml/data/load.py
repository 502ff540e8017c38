"""Sources of examples: one file a format, all yielding the same `Example`.

Knows which reader and which format a dataset needs, and how rows become examples with a split; neither tokens
nor tables.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example, example_id, rows_by_split, template_overlap
from tokenuq_ml.data.formats import (
    alpaca,
    alpaca_eval,
    dolly,
    gsm8k,
    ifeval,
    messages,
    prompt_completion,
    reasoning_gym,
    sharegpt,
)
from tokenuq_ml.data.sources import hub, json_records, locate, table_records
from tokenuq_ml.data.sources.pool import Pool
from tokenuq_ml.data.sources.records import BrokenRow, EndsInside, Parsed, Place, Record
from tokenuq_ml.data.sources.rejected_rows import Rejects
from tokenuq_ml.errors import InputError

__all__ = ["Example", "LoadedExamples", "example_id", "first_conversations", "load_examples", "problem"]

PROGRESS_ROWS = 100_000
DEFAULT_HUB_SPLIT = "train"
NO_SPLIT = "missing split"


@dataclass(frozen=True)
class Format:
    """How a row is understood, and what it is called: by its line, or by its number among the rows."""

    parse: Callable[[dict], Parsed]
    by_line: bool = False
    placed: bool = True
    """Whether `source` says where the row stands."""
    nested: bool = False
    """Whether rows hold lists, which CSV has none of."""


FORMATS = {
    "alpaca": Format(alpaca.parse),
    "sharegpt": Format(sharegpt.parse, nested=True),
    "gsm8k": Format(gsm8k.parse),
    "dolly": Format(dolly.parse),
    "messages": Format(messages.parse, by_line=True, nested=True),
    "prompt_completion": Format(prompt_completion.parse),
    "alpaca_eval": Format(alpaca_eval.parse),
    "ifeval": Format(ifeval.parse, by_line=True, placed=False, nested=True),
}


@dataclass(frozen=True)
class LoadedExamples:
    """A dataset's examples, what was noticed on the way, and the rows that were left out."""

    examples: list[Example]
    metrics: dict[str, int | str]
    rejects: Rejects

    @property
    def duplicates_dropped(self) -> int:
        return self.metrics["duplicate_questions_dropped"]


def load_examples(
    spec: DatasetSpec, scratch: str | Path | None = None, progress: Callable[[str], None] = lambda message: None
) -> LoadedExamples:
    """Read a dataset: as a stream, however large, so that memory holds the drawn examples and some bytes a row.

    `scratch` is the folder of the temporary files that hold the rest; they are as large as the data.

    Raises:
        InputError: a package or file is missing, too many rows are broken, or there are too few.
    """
    if spec.format == "reasoning_gym":
        return _load_problems(spec)
    return _Loading(spec, scratch, progress).load()


def problem(spec: DatasetSpec) -> str | None:
    """Why a dataset cannot be read, told without reading it: a variable, file, package or access is missing."""
    if spec.format == "reasoning_gym":
        return reasoning_gym.problem(spec)
    if spec.on_hub:
        return hub.problem(spec)
    try:
        locate.files_by_part(spec)
    except InputError as error:
        return str(error)
    return None


def _load_problems(spec: DatasetSpec) -> LoadedExamples:
    problems, repeated = reasoning_gym.problems(spec)
    pool, rejects = Pool(), Rejects()
    for number, example in enumerate(problems):
        pool.add(example, "", str(spec.task), Place(number + 1, None))
    drawn = pool.draw(spec, {"": spec.sizes}, f"dataset {spec.name}: task {spec.task!r}", rejects)
    metrics = {
        **rows_by_split(drawn.examples),
        "duplicate_questions_dropped": repeated,
        **template_overlap(drawn.examples),
    }
    return LoadedExamples(drawn.examples, metrics, rejects)


def first_conversations(spec: DatasetSpec, split: str, count: int) -> list[list[dict[str, str]]]:
    """The first `count` conversations of the local files that a split is drawn from; broken rows are passed over.

    Raises:
        InputError: a variable, file or package is missing, or a file holds no such rows.
    """
    if spec.format == "reasoning_gym":
        few = spec.model_copy(update={"sizes": {split: count}})
        return [example.messages for example in reasoning_gym.problems(few)[0]]
    part = (spec.drawn_from or {}).get(split, "")
    found: list[list[dict[str, str]]] = []
    for file in locate.files_by_part(spec)[part]:
        try:
            for record in _records(spec, file):
                with contextlib.suppress(BrokenRow):
                    if isinstance(record.value, dict):
                        found.append(FORMATS[spec.format].parse(record.value).messages)
                if len(found) == count:
                    return found
        except EndsInside:
            continue
    return found


def _records(spec: DatasetSpec, file: Path) -> Iterator[Record]:
    kind = file.suffix.lower()
    if kind == ".csv" and FORMATS[spec.format].nested:
        raise InputError(f"{file}: CSV holds no lists, which format {spec.format!r} needs; use JSON or Parquet")
    readers = {
        ".csv": table_records.csv_rows,
        ".parquet": table_records.parquet_rows,
        ".arrow": table_records.arrow_rows,
    }
    if kind in readers:
        return readers[kind](file)
    return json_records.json_list(file) if json_records.is_list(file) else json_records.json_lines(file)


class _Loading:
    """The way of one dataset from its rows to its examples."""

    def __init__(self, spec: DatasetSpec, scratch: str | Path | None, progress: Callable[[str], None]):
        self.spec, self.format, self.progress = spec, FORMATS[spec.format], progress
        self.pool, self.rejects, self.hub = Pool(scratch), Rejects(scratch), hub.HubSource(spec)
        self.read, self.trimmed, self.truncated = 0, 0, []

    def load(self) -> LoadedExamples:
        where = self._read_all()
        if not self.read:
            raise InputError(f"{where}: holds no rows; name a file with examples")
        self._require_splits_of_all_or_none(where)
        self.rejects.require_few_broken(self.spec, self.read, where)
        drawn = self.pool.draw(self.spec, self._groups(), where, self.rejects)
        metrics = {
            **rows_by_split(drawn.examples),
            "rows_read": self.read,
            "duplicate_questions_dropped": drawn.repeated,
            "duplicate_conversations": drawn.repeated_whole,
            "questions_in_two_splits": drawn.shared,
            **self.rejects.metrics,
            **({"conversations_trimmed": self.trimmed} if self.spec.format == "sharegpt" else {}),
            **({"hub_commit": self.hub.commit} if self.hub.commit else {}),
            **({"truncated": "; ".join(self.truncated)} if self.truncated else {}),
        }
        return LoadedExamples(drawn.examples, metrics, self.rejects)

    def _read_all(self) -> str:
        """Reads every part; returns what to call the source."""
        spec = self.spec
        if spec.on_hub and spec.file is None:
            for part in dict.fromkeys((spec.drawn_from or {"": DEFAULT_HUB_SPLIT}).values()):
                where = f"hub dataset {spec.id}, split {part}"
                records = self.hub.rows(part)
                self._take(records, part if spec.drawn_from else "", where, f"{spec.id}:{part}", 0)
            return f"hub dataset {spec.id}"
        parts = {"": [self.hub.file()]} if spec.on_hub else locate.files_by_part(spec)
        for part, files in parts.items():
            offset = 0
            for file in files:
                offset = self._take(_records(self.spec, file), part, str(file), file.name, offset)
        every = [file for files in parts.values() for file in files]
        return str(every[0] if len(every) == 1 else every[0].parent)

    def _take(self, records: Iterator[Record], part: str, where: str, name: str, offset: int) -> int:
        """Rows into the pool or among the rejects; `offset` is what comes before in the same part, and is returned."""
        last = 0
        try:
            for record in records:
                number = record.index if record.line is None or not self.format.by_line else record.line
                last = number if self.format.by_line else number + 1
                self._take_one(record, offset + number, part, where, name)
        except EndsInside as cut:
            if self.spec.on_truncated == "fail":
                raise InputError(
                    f"{where}: {cut}; copy the file again, or set `on_truncated: keep` of {self.spec.name} in "
                    "datasets.yaml to go on with those"
                ) from None
            self.truncated.append(f"{name} {cut}")
        return offset + last

    def _take_one(self, record: Record, number: int, part: str, where: str, name: str) -> None:
        self.read += 1
        if self.read % PROGRESS_ROWS == 0:
            self.progress(f"{self.spec.name}: {self.read:,} rows read, {self.rejects.broken.total():,} of them broken")
        try:
            if isinstance(record.value, BrokenRow):
                raise record.value
            if not isinstance(record.value, dict):
                raise BrokenRow("not an object", "not a JSON object")
            parsed = self.format.parse(record.value)
        except BrokenRow as broken:
            self.rejects.add_broken(where, name, record.place, broken.reason, str(broken))
            return
        self.trimmed += sharegpt.TRIMMED in parsed.source
        place = {"line": record.line} if self.format.by_line and record.line else {"row": record.index + 1}
        source = {"file": name, **place, **parsed.source} if self.format.placed else parsed.source
        example = Example(example_id(self.spec.name, number, part), "", parsed.messages, source)
        # What the configuration says of parts goes before what a row says.
        self.pool.add(example, part or parsed.split, name, record.place)

    def _groups(self) -> dict[str, dict[str, int]]:
        """Part -> split -> rows wanted: by `drawn_from`, by the splits that rows name, or all from all."""
        sizes = self.spec.sizes
        if self.spec.drawn_from:
            parts = dict.fromkeys(self.spec.drawn_from.values())
            return {part: {s: sizes[s] for s, of in self.spec.drawn_from.items() if of == part} for part in parts}
        if any(self.pool.parts):
            return {split: {split: size} for split, size in sizes.items()}
        return {"": sizes}

    def _require_splits_of_all_or_none(self, where: str) -> None:
        if "" not in self.pool.parts or not any(self.pool.parts):
            return
        for file, place in self.pool.places(""):
            detail = "has no 'split', though other rows do; give one to all or to none"
            self.rejects.add_broken(
                str(Path(where, file) if Path(where).is_dir() else where), file, place, NO_SPLIT, detail
            )
