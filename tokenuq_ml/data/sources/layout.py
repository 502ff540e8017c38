"""Which files of a folder hold rows, by the conventions of `datasets` and of the Hugging Face Hub.

`datasets` itself resolves the `configs` of a README.md and the names that stand for splits; it is loaded only for
those. What `save_to_disk` wrote is read here: `load_from_disk` opens every shard to list them.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenuq_ml.data.sources.fingerprint import SUFFIXES, UNFINISHED, is_data_file
from tokenuq_ml.errors import InputError

_DESCRIPTIONS = {"README.md", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files that say what a folder holds. They have no rows, and are not listed as unread."""
_CONFIG = "config.json"
_MAP_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
"""Results of `Dataset.map` and the like, which `datasets` leaves in the folder of its files."""
_SHARD = re.compile(r"data/(?P<split>[\w.]+)-\d{5}-of-\d{5}.*\..*")
_SPLIT_WORD = re.compile(
    r"(?:^|[-._ 0-9/])(?:train(?:ing)?|valid(?:ation)?|dev|val|test(?:ing)?|eval(?:uation)?)[-._ 0-9/]"
)
"""A word by which `datasets` tells splits apart; without one it is not asked."""
WRITING = "is still being written"


@dataclass
class Folder:
    """The data files of a folder.

    Attributes:
        files: those that are read if no split is asked for, in order.
        splits: its own splits -> their files; empty if it has none.
        says_splits: what names the splits, for messages; empty if only words in file names do.
        not_read: file or subfolder -> why it is not read; without the files that describe the others.
        kinds: endings of data files.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    splits: dict[str, list[Path]] = field(default_factory=dict)
    says_splits: str = ""
    not_read: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = SUFFIXES

    def name(self, file: Path) -> str:
        """Return the name of a file, with its subfolder."""
        try:
            return file.relative_to(self.root).as_posix()
        except ValueError:
            return file.as_posix()


def read_folder(root: Path, config: str | None = None, kinds: tuple[str, ...] = SUFFIXES) -> Folder:
    """List the data files of a folder.

    Args:
        root: the folder.
        config: one of the configurations that its README.md names.
        kinds: endings of data files.

    Raises:
        InputError: a saved dataset lacks a file, or the README.md is wrong or names several configurations.
    """
    folder = Folder(root, kinds=kinds)
    if (root / "dataset_dict.json").is_file():
        _add_dataset_dict(folder)
        return folder
    _walk(folder, root)
    folder.files.sort(key=lambda file: file.relative_to(root).parts)
    if (root / "state.json").is_file():
        return folder
    configs = _configs(root / "README.md")
    if configs:
        _use_splits(folder, _files_of_config(folder, configs, config), "its README.md")
    elif any(_SHARD.fullmatch(folder.name(file)) for file in folder.files):
        _use_splits(folder, _by_convention(folder), "the naming of the others")
    elif any(_SPLIT_WORD.search(folder.name(file)) for file in folder.files):
        found = _by_convention(folder)
        # A single word tells nothing apart: `chats.jsonl` and `chats_train.jsonl` are read together.
        if len(found) > 1:
            _use_splits(folder, found, "")
    return folder


def _add_dataset_dict(folder: Folder) -> None:
    path = folder.root / "dataset_dict.json"
    try:
        names = json.loads(path.read_text())["splits"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not what `DatasetDict.save_to_disk` writes; copy the folder again") from None
    for name in names:
        inner = Folder(folder.root, kinds=folder.kinds)
        if not (folder.root / name / "state.json").is_file():
            raise InputError(f"{path}: names the split {name!r}, whose folder has no state.json; copy the folder again")
        _walk(inner, folder.root / name)
        folder.splits[name] = inner.files
        folder.files += inner.files
        folder.not_read |= inner.not_read
    for entry in sorted(folder.root.iterdir()):
        if entry.name not in names and entry.name not in _DESCRIPTIONS:
            _leave_out(folder, entry, "dataset_dict.json does not name it")
    folder.says_splits = "dataset_dict.json"


def _walk(folder: Folder, inside: Path) -> None:
    """Add the data files in `inside` and its subfolders, and what is not read there."""
    shards = _shards(inside / "state.json")
    for entry in sorted(inside.iterdir()):
        if entry.name in _DESCRIPTIONS:
            continue
        if entry.name.startswith((".", "__")):
            _leave_out(folder, entry, "is hidden")
        elif entry.is_dir():
            if shards is None:
                _walk(folder, entry)
            else:
                _leave_out(folder, entry, "state.json does not name it")
        elif reason := _why_not_read(entry, shards, folder.kinds):
            _leave_out(folder, entry, reason)
        elif shards is None:
            folder.files.append(entry)
    folder.files += shards or []


def _why_not_read(file: Path, shards: list[Path] | None, kinds: tuple[str, ...]) -> str:
    if file.name.endswith(UNFINISHED):
        return WRITING
    if _MAP_CACHE.fullmatch(file.name) and not (shards and file in shards):
        return "is a cache that datasets wrote, of rows that were changed by map()"
    if shards is not None:
        return "" if file in shards else "state.json does not name it"
    if file.name == _CONFIG:
        return "describes a model or a dataset"
    return "" if is_data_file(file, kinds) else "is no kind of data file"


def _leave_out(folder: Folder, entry: Path, reason: str) -> None:
    folder.not_read[folder.name(entry) + ("/" if entry.is_dir() else "")] = reason


def _shards(path: Path) -> list[Path] | None:
    """Return the files that the state.json of a saved dataset names, in its order; None if it is not one."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or "_data_files" not in state:
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"{path}: an old version of datasets saved a selection of rows apart from the rows; load the dataset with "
            "`datasets.load_from_disk` and save it again"
        )
    shards = [path.parent / one["filename"] for one in state["_data_files"]]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{path}: names {shard.name}, which is missing; copy the folder again")
    return shards


def _configs(readme: Path) -> list[dict[str, Any]]:
    """Return the `configs` in the head of a README.md that say which files they have."""
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if not head:
        return []
    import yaml

    try:
        card = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise InputError(f"{readme}: its head is not YAML: {' '.join(str(error).split())[:200]}") from None
    configs = card.get("configs") if isinstance(card, dict) else None
    given = configs if isinstance(configs, list) else []
    return [one for one in given if isinstance(one, dict) and ("data_files" in one or "data_dir" in one)]


def _files_of_config(folder: Folder, configs: list[dict[str, Any]], wanted: str | None) -> dict[str, list[Path]]:
    by_name = {str(one.get("config_name", "default")): one for one in configs}
    marked = [name for name, one in by_name.items() if one.get("default") or name == "default"]
    name = wanted or next(iter(by_name if len(by_name) == 1 else marked), None)
    if name not in by_name:
        what = f"has no configuration {name!r}" if name else "has several configurations"
        raise InputError(f"{folder.root / 'README.md'}: {what}; name one as `config:`: {', '.join(by_name)}")
    chosen = by_name[name]
    base = Path(folder.root, str(chosen.get("data_dir", "")))
    return _resolve(folder, base, chosen.get("data_files"))


def _by_convention(folder: Folder) -> dict[str, list[Path]]:
    return _resolve(folder, folder.root, None)


def _resolve(folder: Folder, base: Path, patterns: Any) -> dict[str, list[Path]]:
    """Return split -> files as `datasets.load_dataset` of the folder has them; `patterns`: of `data_files`."""
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

    where = os.path.abspath(base)
    try:
        asked = get_data_patterns(where) if patterns is None else sanitize_patterns(patterns)
        found = DataFilesDict.from_patterns(asked, base_path=where)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder.root}: datasets cannot find the data files that it names ({str(error).splitlines()[0][:200]}); "
            "correct its README.md, or name one file as `path:`"
        ) from None
    known = {os.path.abspath(file): file for file in folder.files}
    # The names are objects of `datasets`.
    splits = {str(split): [known[file] for file in files if file in known] for split, files in found.items()}
    return {split: files for split, files in splits.items() if files}


def _use_splits(folder: Folder, splits: dict[str, list[Path]], said_by: str) -> None:
    """Read the files of `splits` only, unless nothing but words in their names says so.

    With words only, other files may be asked for by their own.
    """
    used = list(dict.fromkeys(file for files in splits.values() for file in files))
    if said_by:
        others = [file for file in folder.files if file not in used]
        folder.not_read |= {folder.name(file): f"{said_by} makes it no part of the dataset" for file in others}
        folder.files = used
    folder.splits, folder.says_splits = splits, said_by
