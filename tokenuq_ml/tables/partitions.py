"""The Parquet files of a store that belong to complete assets.

The manifest of an asset (`.manifests/<asset>.json`) lists its files. The asset is complete while all of them exist with
the listed sizes. A folder without manifests, which no pipeline writes to, counts as complete.

Knows names, paths and sizes; opens no Parquet file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.schemas import TABLES


def store_home(home: str | Path | None = None) -> Path:
    """Return the absolute path of `home`.

    Default: `$TOKENUQ_HOME`, or else `store/` in the checkout, or else `store/` in the working directory.
    """
    if home is None:
        checkout = Path(__file__).resolve().parents[2]
        root = checkout if (checkout / "config").is_dir() else Path.cwd()
        home = os.environ.get("TOKENUQ_HOME") or root / "store"
    return Path(home).expanduser().resolve()


def complete_files(home: Path) -> dict[str, list[Path]]:
    """Return table -> the Parquet files of its complete assets, in the order of their paths.

    Raises:
        InputError: a file lies outside `home`, through a symbolic link.
    """
    files: dict[str, list[Path]] = {table: [] for table in TABLES}
    for relative in sorted(_published(home)):
        table = _table_of(relative)
        if table is None:
            continue
        path = home / relative
        if not path.resolve().is_relative_to(home):
            raise InputError(
                f"{path} is a link out of the store, to {path.resolve()}; replace it by a copy of that file, or remove "
                "it"
            )
        files[table].append(path)
    return files


def partition_of(path: Path, table: str) -> dict[str, str]:
    """Return the partition of a file of `table`: partition column -> value."""
    folders = path.parts[-1 - len(TABLES[table].partitions) : -1]
    return dict(folder.split("=", 1) for folder in folders)


def _published(home: Path) -> Iterator[PurePosixPath]:
    """Yield the files of complete assets, relative to `home`, including those that belong to no table."""
    # A pipeline creates both folders before it publishes anything.
    if not any((home / name).is_dir() for name in (".manifests", ".staging")):
        for table, definition in TABLES.items():
            pattern = "/".join([table, *(f"{name}=*" for name in definition.partitions), "part-*.parquet"])
            yield from (PurePosixPath(path.relative_to(home).as_posix()) for path in home.glob(pattern))
        return
    for manifest in (home / ".manifests").rglob("*.json"):
        if manifest.name.startswith("."):
            continue
        try:
            files = [(file["path"], file["bytes"]) for file in json.loads(manifest.read_text())["files"]]
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            # Removed since the folder was listed, because its asset is being replaced; or damaged, which
            # `tokenuq status` reports. Either way the asset is not complete.
            continue
        if all(_has_size(home / path, size) for path, size in files):
            yield from (PurePosixPath(path) for path, _ in files)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def _table_of(relative: PurePosixPath) -> str | None:
    """Return the table that the file belongs to; None if it belongs to none."""
    table, *folders, name = relative.parts
    if table not in TABLES or not (name.startswith("part-") and name.endswith(".parquet")):
        return None
    names = tuple(folder.partition("=")[0] for folder in folders)
    return table if names == TABLES[table].partitions else None
