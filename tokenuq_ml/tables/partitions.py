"""The Parquet files of a store that belong to complete assets.

The manifest of an asset (`.manifests/<asset>.json`) lists its files. The asset is complete while all of them exist with
the listed sizes. A folder without manifests, which no pipeline writes to, counts as complete.

Knows names, paths, sizes and recorded hashes; opens no Parquet file. `integrity.py` compares files with their hashes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tokenuq_ml.file_hashes import Identity, identity
from tokenuq_ml.json_files import DamagedFile, damaged, read_json
from tokenuq_ml.object_store.address import Address, is_address, mirror_folder
from tokenuq_ml.object_store.registry import mirror_of, open_mirror, require_no_mirror
from tokenuq_ml.tables.schemas import TABLES

_parsed: dict[Path, tuple[Identity, list["PublishedFile"]]] = {}

MANIFESTS = ".manifests"
FORGET = "`tokenuq verify --forget` deletes it, and the next run makes the asset again"
"""What repairs a damaged manifest."""
DIGEST = "manifest_sha256"
"""The key under which a manifest holds the digest of its other keys. Manifests of earlier versions have none."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of an asset as its manifest records it."""

    asset: str
    path: str
    """Relative to the store."""
    bytes: int
    sha256: str


@dataclass
class Published:
    """What the manifests of a store record, as they were when they were read."""

    files: dict[str, list[PublishedFile]] = field(default_factory=dict)
    """Asset -> its files."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Asset whose manifest cannot be used -> the sentence that says why, and what repairs it.

    Also the start of such names, where the folder of the manifests is none; `.` for all.
    """


def store_home(home: str | Path | None = None) -> Path:
    """Return the absolute path of `home`; of an address `s3://bucket/prefix`, the folder that mirrors that store.

    Default: `$TOKENUQ_HOME`, or else `store/` in the checkout, or else `store/` in the working directory.

    Raises:
        InputError: the store is in a bucket that cannot be read, or the folder is the mirror of one.
    """
    home = _named_home() if home is None else home
    if is_address(home):
        return open_mirror(str(home))
    folder = Path(home).expanduser().resolve()
    named = _named_home()
    if is_address(named) and folder == store_folder():
        # A process of a run is told the folder, and has the address in its environment.
        return open_mirror(str(named))
    require_no_mirror(folder)
    return folder


def store_folder() -> Path:
    """Return the folder on this machine of the store that `$TOKENUQ_HOME` names; asks no bucket.

    Raises:
        InputError: the variable is no address of a store.
    """
    home = _named_home()
    return mirror_folder(Address.parse(str(home))) if is_address(home) else Path(home).expanduser().resolve()


def _named_home() -> str | Path:
    checkout = Path(__file__).resolve().parents[2]
    root = checkout if (checkout / "config").is_dir() else Path.cwd()
    return os.environ.get("TOKENUQ_HOME") or root / "store"


def complete_files(home: Path) -> dict[str, list[Path]]:
    """Return table -> the Parquet files of its complete assets, in the order of their paths.

    A symbolic link is no file of an asset: it is left out, with the asset that it replaced a file of. The files of a
    damaged asset are left out too; `integrity.damage_of_table` says which, and why.
    """
    files: dict[str, list[Path]] = {table: [] for table in TABLES}
    for relative in sorted(set(_complete(home))):
        table = table_of(relative)
        if table is not None:
            files[table].append(home / relative)
    return files


def has_manifests(home: Path) -> bool:
    """Return whether a pipeline has written to the store. It creates both folders before it publishes anything."""
    return any((home / name).is_dir() for name in (MANIFESTS, ".staging"))


def manifest_names(home: Path) -> list[str]:
    """Return the assets that have a manifest, whatever it holds; a folder of such a name counts as a damaged one."""
    if (mirror := mirror_of(home)) is not None:
        mirror.refresh()
    root = home / MANIFESTS
    found = []
    # Through a link, as everywhere in a store, nothing is read.
    for parent, folders, files in [] if root.is_symlink() else os.walk(root):
        names = [name for name in (*folders, *files) if name.endswith(".json") and not name.startswith(".")]
        folders[:] = [name for name in folders if name not in names]
        # Each read of a table lists all manifests: paths stay strings.
        below = parent.removeprefix(str(root)).lstrip("/")
        found += [f"{below}/{name}".lstrip("/").removesuffix(".json") for name in names]
    return sorted(found)


def damaged_folders(home: Path) -> dict[Path, str]:
    """Return what lies where a folder of manifests should be, and is none or cannot be read -> the sentence about it.

    Behind it, manifests are neither seen nor missed.
    """
    root, unreadable = home / MANIFESTS, list[OSError]()
    found = [root] if os.path.islink(root) or (os.path.lexists(root) and not root.is_dir()) else []
    for parent, folders, files in [] if found else os.walk(root, onerror=unreadable.append):
        odd = [name for name in files if not name.startswith(".") and not name.endswith(".json")]
        odd += [name for name in folders if os.path.islink(Path(parent, name)) and not name.endswith(".json")]
        found += [Path(parent, name) for name in odd]
    sentences = {path: f"{path} is not a folder; `tokenuq verify --forget` moves it to the trash" for path in found}
    for error in unreadable:
        if not isinstance(error, FileNotFoundError):
            path = Path(str(error.filename))
            sentences[path] = f"{path} cannot be read ({error.strerror}); let this user read it"
    return dict(sorted(sentences.items()))


def published(home: Path) -> Published:
    """Read all manifests of a store."""
    found = Published()
    for asset in manifest_names(home):
        try:
            found.files[asset] = _remembered_files(home / MANIFESTS / f"{asset}.json", asset)
        except FileNotFoundError:
            # Removed since the folder was listed, because its asset is being replaced.
            continue
        except DamagedFile as error:
            found.damaged[asset] = str(error)
    for path, sentence in damaged_folders(home).items():
        found.damaged[path.relative_to(home / MANIFESTS).as_posix()] = sentence
    return found


def published_files(home: Path) -> dict[str, PublishedFile]:
    """Return path relative to the store -> the file as its manifest records it, for all assets."""
    return {file.path: file for files in published(home).files.values() for file in files}


def _remembered_files(path: Path, asset: str) -> list[PublishedFile]:
    """Return `manifest_files`, parsed again only after the manifest was replaced."""
    try:
        now = identity(os.lstat(path))
    except OSError:
        return manifest_files(path, asset)
    known = _parsed.get(path)
    if known is None or known[0] != now:
        known = _parsed[path] = (now, manifest_files(path, asset))
    return known[1]


def manifest_files(path: Path, asset: str) -> list[PublishedFile]:
    """Return the files that a manifest lists.

    Raises:
        FileNotFoundError: there is no manifest.
        DamagedFile: it cannot be read, or is not the record of an asset.
    """
    content = read_json(path, FORGET)
    entries = content.get("files") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise damaged(path, "has no list of files", FORGET)
    if content.get("asset", asset) != asset:
        raise damaged(path, f"is the manifest of {content['asset']!r}, not of {asset}", FORGET)
    files = [_entry(path, asset, entry) for entry in entries]
    if len({file.path for file in files}) < len(files):
        raise damaged(path, "lists a file twice", FORGET)
    check_digest(path, content)
    return files


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, its digest left out: of JSON with sorted keys and no spaces."""
    others = {key: value for key, value in content.items() if key != DIGEST}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_digest(path: Path, content: Mapping[str, Any]) -> None:
    """Check that a manifest is as it was written. One of an earlier version, without a digest, is accepted.

    Finds what was changed by accident or by hand. Who can write to the store can write a digest too.

    Raises:
        DamagedFile: it is not.
    """
    try:
        if DIGEST in content and content[DIGEST] != digest_of(content):
            raise damaged(
                path, f"has been changed since it was written: its content is not that of its {DIGEST}", FORGET
            )
    except RecursionError:
        raise damaged(path, "is nested too deeply for JSON of a store", FORGET) from None


def _entry(manifest: Path, asset: str, entry: Any) -> PublishedFile:
    if not isinstance(entry, dict):
        raise damaged(manifest, "an entry of `files` is not an object", FORGET)
    path, size, digest = (entry.get(name) for name in ("path", "bytes", "sha256"))
    inside = isinstance(path, str) and path and not path.startswith("/") and ".." not in PurePosixPath(path).parts
    if not inside or "\0" in str(path):
        raise damaged(manifest, f"{path!r} is no path in the store", FORGET)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise damaged(manifest, f"`bytes` of {path} is no size", FORGET)
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise damaged(manifest, f"`sha256` of {path} is no SHA-256", FORGET)
    return PublishedFile(asset, str(path), size, digest)


def partition_of(path: Path, table: str) -> dict[str, str]:
    """Return the partition of a file of `table`: partition column -> value."""
    folders = path.parts[-1 - len(TABLES[table].partitions) : -1]
    return dict(folder.split("=", 1) for folder in folders)


def _complete(home: Path) -> Iterator[PurePosixPath]:
    """Yield the files of complete assets, relative to `home`, including those that belong to no table."""
    if not has_manifests(home):
        for table, definition in TABLES.items():
            pattern = "/".join([table, *(f"{name}=*" for name in definition.partitions), "part-*.parquet"])
            for path in home.glob(pattern):
                if why_not_file(home, path.relative_to(home).as_posix()) is None:
                    yield PurePosixPath(path.relative_to(home).as_posix())
        return
    mirror = mirror_of(home)
    for files in published(home).files.values():
        # A mirror counts the objects of its bucket, whether or not they are here.
        local = (why_not_file(home, file.path, file.bytes) for file in files)
        if not (any(local) if mirror is None else mirror.missing(files)):
            yield from (PurePosixPath(file.path) for file in files)


def why_not_file(home: Path, relative: str, size: int | None = None) -> str | None:
    """Return why a path of the store is not a file of it, of `size` bytes; None if it is.

    Every folder between the store and the file is looked at: a symbolic link may lead out of the store, or to the
    files of another asset.
    """
    path = home
    parts = PurePosixPath(relative).parts
    try:
        for number, part in enumerate(parts, 1):
            path = path / part
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                return f"{path} is a symbolic link"
            if number < len(parts) and not stat.S_ISDIR(status.st_mode):
                return f"{path} is not a folder"
    except (FileNotFoundError, NotADirectoryError):
        return f"{home / relative} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a file"
    if size is not None and status.st_size != size:
        return f"{path} has {status.st_size} bytes, not {size}"
    return None


def table_of(relative: PurePosixPath) -> str | None:
    """Return the table that a path of the store belongs to; None if it belongs to none."""
    if len(relative.parts) < 2:
        return None
    table, *folders, name = relative.parts
    if table not in TABLES or not (name.startswith("part-") and name.endswith(".parquet")):
        return None
    names = tuple(folder.partition("=")[0] for folder in folders)
    return table if names == TABLES[table].partitions else None
