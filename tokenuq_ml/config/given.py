"""Datasets and models that a user names on the command line, without an entry in a YAML file.

A name on the command line is, in this order: an entry of the configuration, a file or folder, an address, an id on the
Hugging Face Hub. Only the callers know entries; here are the others.
"""

import os
import re
from pathlib import Path, PurePath
from typing import Any, Literal

from tokenuq_ml.config.base import NAME
from tokenuq_ml.config.model import ModelSpec
from tokenuq_ml.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
GGUF = ".gguf"


def name_of(given: str, fallback: str = "given") -> str:
    """Return a name, as asset keys have it, for what a user has given: `data/My Chats.jsonl` is `my_chats`."""
    stem = PurePath(given.rstrip("/")).name.split(".", 1)[0] if given else ""
    name = "_".join(re.findall(r"[a-z0-9]+", stem.lower()))
    return name if NAME.fullmatch(name) else fallback


def dataset_keys(given: str, split: str | None = None) -> dict[str, Any]:
    """Return the keys of a dataset's entry that say where its rows are; `format` and `sizes` are not among them.

    Args:
        given: a file, a folder, an address (`s3://...`), or the id of a dataset on the hub.
        split: only the rows of this split of the hub's dataset or of the folder.

    Raises:
        InputError: there is no such file, and it is no id of the hub.
    """
    place = _place(given, "dataset", "datasets.yaml")
    return {**place, "duplicates": "keep", **({"drawn_from": {"test": split}} if split else {})}


def model_spec(given: str, name: str | None = None) -> ModelSpec:
    """Return the entry of a model: a folder in Hugging Face's format, a GGUF file, or an id on the hub.

    Raises:
        InputError: there is no such folder or file, and it is no id of the hub.
    """
    place = _place(given, "model", "models.yaml")
    path = place.get("path")
    if path is None:
        return ModelSpec(name=name or name_of(given), source="hub", id=place["id"])
    source: Literal["gguf", "path"] = "gguf" if path.lower().endswith(GGUF) else "path"
    if source == "path" and not os.path.isdir(path):
        raise InputError(
            f"{given}: is no model: name a folder in Hugging Face's format, a {GGUF} file, or an id on the hub"
        )
    return ModelSpec(name=name or name_of(given), source=source, path=path)


def _place(given: str, what: str, file: str) -> dict[str, str]:
    if "://" in given:
        return {"path": given}
    path = Path(given).expanduser()
    if path.exists():
        return {"path": str(path.resolve())}
    if HUB_ID.fullmatch(given) and not given.startswith((".", "/")):
        return {"id": given}
    raise InputError(f"{given}: there is no such file or folder, no {what} of this name in {file}, and it is no hub id")
