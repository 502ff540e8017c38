"""Places in the store: what a manifest or a name may refer to, checked before anything is read or deleted by it.

A manifest is a file that anyone with access to the store may have written. Its text decides which folders are read,
compared, replaced and deleted, so each place must be a folder of that very asset, reached through no symbolic link.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenuq_ml.config import NAME
from tokenuq_ml.object_store.address import is_inside
from tokenuq_pipeline.runtime.store_layout import places_of

MANIFESTS = ".manifests"


def check_asset_name(asset: str) -> str:
    """Return `asset` if it is the name of an asset: `models/<model>`, `<study>/<stage>`, `<study>/<ablation>/<stage>`.

    Raises:
        ValueError: it is not, and might name a file outside the folder of manifests or of checkpoints.
    """
    parts = asset.split("/")
    if not (len(parts) in (2, 3) and all(NAME.fullmatch(part) for part in parts)):
        raise ValueError(f"{asset!r} is not the name of an asset: use names of [a-z0-9_]+ with slashes between them")
    return asset


def is_asset_name(name: str) -> bool:
    """Return whether an asset can have this name."""
    with contextlib.suppress(ValueError):
        return bool(check_asset_name(name))
    return False


def manifest_place(asset: str) -> str:
    """Return where the manifest of an asset is, relative to the store."""
    return f"{MANIFESTS}/{asset}.json"


def check_places(asset: str, outputs: Mapping[str, str], files: Iterable[str]) -> None:
    """Check that every place in a manifest is one that its asset can have. Compares text; reads no file.

    Args:
        asset: name of the asset.
        outputs: output name -> folder, relative to the store.
        files: the asset's files, relative to the store.

    Raises:
        ValueError: a name is not an asset's, a folder is not one of that very asset, or a file is in none of them.
    """
    allowed = places_of(check_asset_name(asset))
    for output, place in outputs.items():
        if output not in allowed:
            known = f"it has {', '.join(allowed)}" if allowed else "no stage of this name has outputs"
            raise ValueError(f"{asset} has no output {output!r}: {known}")
        if place != allowed[output]:
            raise ValueError(
                f"outputs.{output}: {place!r} is not a folder of {asset}, whose {output} is {allowed[output]}"
            )
    folders = tuple(f"{place}/" for place in outputs.values())
    for file in files:
        if not (file.startswith(folders) and is_inside(file)):
            raise ValueError(f"files: {file!r} is in none of the asset's folders")


def check_plots(outputs: Mapping[str, str], plots: Iterable[str]) -> None:
    """Check that every picture in a manifest is a file of one of its outputs, as `<output>/<file>`.

    Raises:
        ValueError: one is not.
    """
    for plot in plots:
        if plot.partition("/")[0] not in outputs or not is_inside(plot):
            raise ValueError(f"plots: {plot!r} is in none of the asset's outputs")


def linked(home: Path, relative: Iterable[str]) -> Path | None:
    """Return the first symbolic link on the way from `home` to one of these paths, the path included; None without one.

    Paths that do not exist hold no link.
    """
    seen: dict[str, bool] = {}  # path -> whether it exists
    root = str(home)
    for path in relative:
        upper = root
        for part in path.split("/"):
            upper = f"{upper}/{part}"
            if upper not in seen:
                try:
                    mode = os.lstat(upper).st_mode
                except (FileNotFoundError, NotADirectoryError):
                    mode = 0
                if stat.S_ISLNK(mode):
                    return Path(upper)
                seen[upper] = mode != 0
            if not seen[upper]:
                break
    return None


def check_no_link(home: Path, relative: Iterable[str]) -> None:
    """Check that no path leads through a symbolic link: behind one, a file is not the store's own.

    Raises:
        ValueError: one does; the message names the link.
    """
    if (link := linked(home, relative)) is not None:
        raise ValueError(f"{link} is a symbolic link; replace it by a copy of what it points to, or remove it")
