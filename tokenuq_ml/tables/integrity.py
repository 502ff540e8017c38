"""Compare files of a store with what their manifests recorded: kind, size and SHA-256.

A manifest that is replaced while a file is compared is read again: an asset that is being published is not damaged.
"""

import functools
import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from tokenuq_ml.file_hashes import Identity, KeptHashes, cache_folder, identity, sha256_of
from tokenuq_ml.object_store.registry import mirror_of
from tokenuq_ml.tables.partitions import (
    MANIFESTS,
    Published,
    PublishedFile,
    has_manifests,
    manifest_names,
    partition_of,
    published,
    store_home,
    table_of,
    why_not_file,
)
from tokenuq_ml.tables.schemas import TABLES

REPAIR = "`tokenuq verify --forget`, then `tokenuq run`, makes it again"
"""What repairs a damaged file."""
SET_ASIDE = "`tokenuq verify --forget` moves it to the trash"
"""What repairs a folder with a file too many."""
_NOT_OURS = re.compile(r"\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+|\.DS_Store")
"""Files that file systems and desktops leave in folders, and that nothing reads."""


def damage_of(home: str | Path, file: str | Path) -> str | None:
    """Return how a published file of a store differs from what its manifest recorded; None if it does not.

    Reads the file, unless it was read before and has not been written to since (`file_hashes.KeptHashes`). For several
    files, `damages` is faster.

    Args:
        home: the store.
        file: absolute, or relative to the store.

    Returns:
        One sentence that names the file and what repairs it.
    """
    return next(iter(damages(home, [file]).values()), None)


def damages(home: str | Path, files: Iterable[str | Path]) -> dict[Path, str]:
    """Return absolute path -> `damage_of` it, for the files that are damaged."""
    home, found = store_home(home), {}
    if not has_manifests(home):
        return {}
    kept, records = _kept(cache_folder()), _records(home)
    places = [Path(os.path.normpath(home / file)).relative_to(home).as_posix() for file in files]
    if (mirror := mirror_of(home)) is not None:
        mirror.refresh()
        mirror.fetch_all([record for place in places if (record := records.of(place))], kept.sha256_of)
    for relative in places:
        sentence = records.damage(relative, kept)
        if sentence is not None:
            found[home / relative] = sentence
    kept.save()
    return found


def damage_of_table(home: str | Path, table: str, **partitions: str | Collection[str]) -> str | None:
    """Return why a table must not be read: a file of it is damaged, or does not belong to any asset.

    Reads every file of the table once, as `damage_of` does.

    Args:
        home: the store.
        table: a name of `TABLES`.
        **partitions: the value, or the values, of partition columns; only these partitions are looked at.

    Returns:
        One sentence about the first damaged file; None if there is none.
    """
    home = store_home(home)
    # Only folders of the wanted partitions are listed: a study may have thousands.
    one = {name: f"{name}={glob.escape(value)}" for name, value in partitions.items() if isinstance(value, str)}
    folders_of = (one.get(name, "*=*") for name in TABLES[table].partitions)
    on_disk = sorted(home.glob("/".join([table, *folders_of, "*.parquet"])))
    on_disk = [path for path in on_disk if _is_of(path.relative_to(home).as_posix(), table, partitions)]
    if not has_manifests(home):
        wrong = (why_not_file(home, path.relative_to(home).as_posix()) for path in on_disk)
        return next((f"{sentence}; remove it" for sentence in wrong if sentence), None)
    now = published(home)
    listed = {file.path for files in now.files.values() for file in files}
    paths = {path for path in listed if _is_of(path, table, partitions)}
    found = damages(home, sorted(paths))
    if found:
        return next(iter(found.values()))
    folders = {(home / path).parent for path in paths}
    unlisted_files = (path for path in on_disk if path.relative_to(home).as_posix() not in listed)
    wrong = (_why_unlisted(path, folders, now, table) for path in unlisted_files)
    return next((sentence for sentence in wrong if sentence), None)


def file_difference(home: Path, file: PublishedFile, kept: KeptHashes | None = None) -> str | None:
    """Return how one file differs from its record: what it is, its size, its SHA-256. A mirror fetches it first.

    Args:
        home: the store.
        file: the record.
        kept: hashes that were computed by earlier processes; by default, the file is read.
    """
    hash_of = kept.sha256_of if kept else sha256_of
    mirror = mirror_of(home)
    wrong = mirror.fetch(file, hash_of) if mirror is not None else None
    if wrong := wrong or why_not_file(home, file.path, file.bytes):
        return wrong
    path = home / file.path
    try:
        digest = hash_of(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    if digest != file.sha256:
        return f"{path}: its SHA-256 begins with {digest[:12]}, not {file.sha256[:12]}"
    return None


def unlisted(folder: str | Path, listed: Iterable[str | Path]) -> list[Path]:
    """Return the files in a folder, at any depth, that are not listed; both by absolute paths."""
    known = {str(path) for path in listed}
    found = []
    for root, folders, files in os.walk(folder):
        # A link to a folder is not walked into: it is listed as a file would be.
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*files, *links):
            if os.path.join(root, name) not in known and not _NOT_OURS.fullmatch(name):
                found.append(Path(root, name))
    return sorted(found)


class _Records:
    """What the manifests of a store record, read again where a manifest has changed."""

    def __init__(self, home: Path):
        self._home = home
        self._where: dict[str, PublishedFile] = {}
        self._seen: dict[str, Identity | None] = {}

    def damage(self, relative: str, kept: KeptHashes) -> str | None:
        """Return what is wrong with a file, and what repairs it."""
        for _ in range(2):
            record = self.of(relative)
            if record is None:
                return self._why_no_record(relative)
            wrong = file_difference(self._home, record, kept)
            wrong = f"{wrong}; {REPAIR}" if wrong else self._extra_part(record)
            if wrong is None or self._identity(record.asset) == self._seen[record.asset]:
                break
        return wrong

    def of(self, relative: str) -> PublishedFile | None:
        """Return what the manifests record of a file; None if it is in none."""
        record = self._where.get(relative)
        if record is None or self._identity(record.asset) != self._seen[record.asset]:
            self._read()
            record = self._where.get(relative)
        return record

    def _read(self) -> None:
        # Before they are read: a manifest that is replaced meanwhile then differs from what was seen.
        before = {asset: self._identity(asset) for asset in manifest_names(self._home)}
        found = published(self._home)
        self._seen = {asset: before.get(asset) for asset in found.files}
        self._where = {file.path: file for files in found.files.values() for file in files}

    def _identity(self, asset: str) -> Identity | None:
        try:
            return identity(os.lstat(self._home / MANIFESTS / f"{asset}.json"))
        except OSError:
            return None

    def _why_no_record(self, relative: str) -> str:
        return f"{self._home / relative} belongs to no complete asset; `tokenuq run` makes the assets of a study"

    def _extra_part(self, record: PublishedFile) -> str | None:
        """Return that a second file lies where a table's reader would read it too."""
        if table_of(PurePosixPath(record.path)) is None:
            return None
        path = self._home / record.path
        try:
            names = [entry.name for entry in os.scandir(path.parent) if entry.name.endswith(".parquet")]
        except OSError:
            names = []
        extra = [name for name in sorted(names) if self._where.get(f"{Path(record.path).parent}/{name}") is None]
        return f"{path.parent / extra[0]} does not belong to {record.asset}; {SET_ASIDE}" if extra else None


@functools.cache
def _kept(folder: Path) -> KeptHashes:
    """Return the hashes that the user keeps, read once per process."""
    return KeptHashes(folder / "file_hashes.json")


_all_records: dict[Path, _Records] = {}


def _records(home: Path) -> _Records:
    return _all_records.setdefault(home, _Records(home))


def _is_of(relative: str, table: str, partitions: Mapping[str, str | Collection[str]]) -> bool:
    # Most paths of a store are of other tables, and parsing one costs more than all the rest.
    if not relative.startswith(f"{table}/") or table_of(PurePosixPath(relative)) != table:
        return False
    found = partition_of(Path(relative), table)
    wanted = {name: {value} if isinstance(value, str) else value for name, value in partitions.items()}
    return all(found[name] in values for name, values in wanted.items())


def _why_unlisted(path: Path, folders: set[Path], now: Published, table: str) -> str | None:
    """Return why a file that no manifest lists makes its table unreadable; None if it is only left over.

    It does where it lies next to a published file, and where the manifest that listed it is damaged.
    """
    if path.parent in folders:
        return f"{path} does not belong to any asset; {SET_ASIDE}"
    values = list(partition_of(path, table).values())
    for asset, sentence in now.damaged.items():
        parts = asset.split("/")
        # A study's asset names study and ablation, a dataset's the dataset. A damaged folder hides all below it.
        hidden = asset in (".", values[0], "datasets")
        if hidden or set(values) <= {*parts, "base", "teacher"}:
            return sentence
    return None
