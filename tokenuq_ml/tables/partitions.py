"""Which files of which tables there are: those whose asset is whole, and no others.

A store says it in its manifests (`.manifests/<asset>.json`): an asset is whole while it has
one whose files are all there, in size. A folder that no pipeline writes to has no manifests;
there every partition counts. Knows names, paths and sizes; opens no Parquet file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.schemas import TABLES


def store_home(home: str | Path | None = None) -> Path:
    """`home`, by default `$TOKENUQ_HOME`, by default `store/` in the checkout, or else in the working directory."""
    if home is None:
        checkout = Path(__file__).resolve().parents[2]
        root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
        home = os.environ.get("TOKENUQ_HOME") or root / "store"
    return Path(home).expanduser().resolve()


def whole_files(home: Path) -> dict[str, list[Path]]:
    """The Parquet files of every table whose assets are whole, by table, in the order of their paths.

    Raises:
        InputError: a file lies outside `home`, through a symbolic link.
    """
    files: dict[str, list[Path]] = {table: [] for table in TABLES}
    for place in sorted(_published(home)):
        table = _table_of(place)
        if table is None:
            continue
        path = home / place
        if not path.resolve().is_relative_to(home):
            raise InputError(
                f"{path} leads out of the store, to {path.resolve()}; copy what it names into its place, "
                "or remove the link"
            )
        files[table].append(path)
    return files


def partition_of(path: Path, table: str) -> dict[str, str]:
    """The partition that a file of `table` lies in: partition column -> value."""
    folders = path.parts[-1 - len(TABLES[table].partitions) : -1]
    return dict(folder.split("=", 1) for folder in folders)


def _published(home: Path) -> Iterator[PurePosixPath]:
    """Files of whole assets, relative to `home`; whether or not they belong to a table."""
    # A pipeline makes both before it publishes anything.
    if not any((home / name).is_dir() for name in (".manifests", ".staging")):
        for table, definition in TABLES.items():
            pattern = "/".join([table, *(f"{name}=*" for name in definition.partitions), "part-*.parquet"])
            yield from (PurePosixPath(path.relative_to(home).as_posix()) for path in home.glob(pattern))
        return
    for manifest in (home / ".manifests").rglob("*.json"):
        if manifest.name.startswith("."):
            continue
        try:
            files = json.loads(manifest.read_text())["files"]
        except (FileNotFoundError, json.JSONDecodeError):
            # Taken away since the folder was listed: its asset is being replaced.
            continue
        if all(_has_size(home / file["path"], file["bytes"]) for file in files):
            yield from (PurePosixPath(file["path"]) for file in files)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def _table_of(place: PurePosixPath) -> str | None:
    """The table whose partition `place` is a file of."""
    table, *folders, name = place.parts
    if table not in TABLES or not (name.startswith("part-") and name.endswith(".parquet")):
        return None
    names = tuple(folder.partition("=")[0] for folder in folders)
    return table if names == TABLES[table].partitions else None
