"""Look at the first rows of a local dataset, to say before a run that none can be used."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.generated import GENERATED
from tokenuq_ml.data.row_reader import RowReader, kind_of
from tokenuq_ml.data.sources import locate, read_file, remote
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow, Record, TruncatedFile
from tokenuq_ml.errors import InputError

CHECKED_ROWS = 100


def why_unusable(spec: DatasetSpec) -> str | None:
    """Return what is wrong with the first row of a local dataset if none of its first rows can be used; else None.

    Files at an address are not downloaded.
    """
    if spec.format in GENERATED or (spec.path is not None and remote.is_address(spec.path)):
        return None
    reader, read, broken, first = RowReader(spec), 0, 0, ""
    try:
        for file, record in itertools.islice(_records(spec, reader), CHECKED_ROWS):
            read += 1
            try:
                reader.parse(record.value, kind_of(file.name))
            except LeftOutRow:
                return None
            except BrokenRow as error:
                broken, first = broken + 1, first or f"{file}: {record.location}: {error}"
            else:
                return None
    except (InputError, OSError) as error:
        return str(error)
    if not read:
        return f"dataset {spec.name}: {spec.path or spec.file}: holds no rows; name a file with examples"
    if not broken or spec.max_broken_share == 1:
        return None
    return f"none of the first {broken} rows can be used: {first}"


def _records(spec: DatasetSpec, reader: RowReader) -> Iterator[tuple[Path, Record]]:
    """Yield the records of the dataset's files, as far as files are complete."""
    for file in locate.find_files(spec).files:
        with contextlib.suppress(TruncatedFile):
            for record in read_file.records(spec, file, reader.is_row):
                yield file, record
