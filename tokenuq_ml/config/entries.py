"""Entries of a YAML file of the configuration, from all folders, and their checks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tokenuq_ml.config.base import Spec
from tokenuq_ml.config.credentials import check_no_credentials
from tokenuq_ml.config.problems import problems
from tokenuq_ml.config.yaml_file import read_mapping
from tokenuq_ml.errors import InputError

AnySpec = TypeVar("AnySpec", bound=Spec)


def read_entries(folders: Sequence[Path], file: str) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Yield path, name and content of each entry of a file that folders need not have.

    Raises:
        InputError: a name is in two folders, or an entry is not a mapping or holds a credential.
    """
    origins: dict[str, Path] = {}
    for path in (folder / file for folder in folders):
        if not path.is_file():
            continue
        for name, raw in read_mapping(path).items():
            if name in origins:
                raise InputError(f"{path}: {name}: already defined in {origins[name]}; rename one of them")
            origins[name] = path
            require_mapping(path, name, raw)
            check_no_credentials(f"{path}: {name}", raw)
            yield path, name, raw


def require_mapping(path: Path, name: str, raw: Any) -> None:
    """Check that an entry is a mapping.

    Raises:
        InputError: it is not.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{path}: {name}: must be a mapping, is {type(raw).__name__}")


def checked_entry(spec_class: type[AnySpec], path: Path, name: str, raw: dict[str, Any]) -> AnySpec:
    """Return the spec of an entry.

    Raises:
        InputError: a key is unknown or a value is invalid; the message has a line for each.
    """
    try:
        return spec_class(**{**raw, "name": name})
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {name}{line}" for line in problems(spec_class, error))) from None
