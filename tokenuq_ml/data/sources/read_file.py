"""Read the rows of one data file, whatever kind it is."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources import csv_records, json_objects, json_records, table_records, text_records
from tokenuq_ml.data.sources.data_stream import compression_of, require_data
from tokenuq_ml.data.sources.fingerprint import BINARY, TEXT, kind_of
from tokenuq_ml.data.sources.records import Record
from tokenuq_ml.errors import InputError

_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\xff\xff\xff\xff": ".arrow"}


def records(spec: DatasetSpec, file: Path, is_row: Callable[[object], bool]) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        spec: the dataset.
        file: one of its files.
        is_row: whether a JSON value is a row of the dataset's format.

    Raises:
        InputError: the file cannot be read, or holds its rows elsewhere than the dataset says.
        TruncatedFile: the file ends too early.
    """
    kind = kind_of_content(file)
    is_text = kind == TEXT and spec.format == "raw_text"
    require_data(file, is_text)
    if spec.field is not None and (is_text or kind in (*BINARY, *csv_records.DELIMITERS)):
        raise InputError(
            f"{file}: `field: {spec.field}` names a key of a JSON object, which the file is not; remove it"
        )
    if kind in BINARY:
        if compression_of(file):
            raise InputError(f"{file}: is compressed a second time; unpack it, as {kind} compresses its columns itself")
        yield from table_records.parquet_rows(file) if kind == ".parquet" else table_records.arrow_rows(file)
    elif is_text:
        yield from text_records.paragraphs(file)
    elif kind in csv_records.DELIMITERS:
        yield from csv_records.csv_rows(file, csv_records.DELIMITERS[kind])
    elif spec.field is not None or json_records.is_list(file):
        yield from json_records.json_list(file, spec.field)
    else:
        _require_rows(spec, file, is_row)
        yield from json_records.json_lines(file)


def kind_of_content(file: Path) -> str:
    """Return the kind of a file by its ending; by its first bytes if it has another one."""
    kind = kind_of(file)
    if kind in (*BINARY, *csv_records.DELIMITERS):
        return kind
    with open(file, "rb") as opened:
        head = opened.read(8)
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), kind)


def _require_rows(spec: DatasetSpec, file: Path, is_row: Callable[[object], bool]) -> None:
    """Check that a JSON file is not one object that holds the rows."""
    found = json_objects.single_object(file)
    if found is None:
        return
    if found.on_one_line and (not found.is_nested or is_row(next(json_records.json_lines(file)).value)):
        return
    raise InputError(f"{file}: {found.problem(spec.name)}")
