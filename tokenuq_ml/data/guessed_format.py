"""The format of rows that a user gives without naming it: the one whose columns the first row has."""

from collections.abc import Mapping
from typing import Any

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import DEFAULT_HUB_SPLIT
from tokenuq_ml.data.row_reader import COLUMNS_OF_FORMATS
from tokenuq_ml.data.sources import hub, locate, read_file
from tokenuq_ml.data.sources.fingerprint import TEXT
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.errors import InputError

_SHOWN = 12
_REMEDY = "name the format with --format, or write an entry in datasets.yaml, whose `columns:` maps names"


def guess_format(keys: Mapping[str, Any], where: str) -> str:
    """Return the format of a dataset by its first row; `raw_text` for text files.

    If the columns fit several formats, the first of `COLUMNS_OF_FORMATS` is taken: conversations before single answers.

    Args:
        keys: of the dataset's entry, without `format`.
        where: its name in errors.

    Raises:
        InputError: there is no row, or its columns fit no format.
    """
    row = _first_row(keys, where)
    if row is None:
        return "raw_text"
    if isinstance(row, BrokenRow):
        raise InputError(f"{where}: the first row is broken ({row}); {_REMEDY}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: the first row is no object with named columns; {_REMEDY}")
    filled = [name for name, value in row.items() if value not in (None, "", [])]
    fitting = [name for name, columns in COLUMNS_OF_FORMATS.items() if set(columns) <= set(filled)]
    if fitting:
        return fitting[0]
    shown = ", ".join(filled[:_SHOWN]) + (", ..." if len(filled) > _SHOWN else "")
    raise InputError(f"{where}: no format has the columns of the first row ({shown or 'none is filled'}); {_REMEDY}")


def _first_row(keys: Mapping[str, Any], where: str) -> Any:
    """Return the first row; None for a file of text."""
    # The format decides whether files of text are read: first all files, then as rows.
    spec = DatasetSpec.model_validate({**keys, "format": "raw_text"})
    if spec.on_hub:
        part = next(iter(spec.drawn_from.values())) if spec.drawn_from else DEFAULT_HUB_SPLIT
        records = hub.HubSource(spec).rows(part)
    else:
        found = locate.find_files(spec)
        file = next(file for files in found.parts.values() for file in files)
        if read_file.kind_of_content(file) == TEXT:
            return None
        as_rows = spec.model_copy(update={"format": "messages"})
        records = read_file.records(as_rows, file, lambda value: True)
    for record in records:
        return record.value
    raise InputError(f"{where}: holds no rows; name a file with examples")
