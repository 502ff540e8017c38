"""Which folders of this process mirror a store in a bucket.

Functions that read a store take its folder. Those for which it matters ask `mirror_of(home)` whether the folder is a
mirror. Does not load obstore until a store in a bucket is opened.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import Address, mirror_folder

if TYPE_CHECKING:
    from tokenuq_ml.object_store.mirror import Mirror, Recorded


class PublishedFile(Protocol):
    """A file of a store, with the asset that it belongs to."""

    @property
    def asset(self) -> str:
        """Its name."""

    @property
    def path(self) -> str:
        """Relative to the store."""


STATE = ".mirror"
_mirrors: dict[Path, "Mirror | SealedMirror"] = {}


def open_mirror(text: str) -> Path:
    """Return the folder that mirrors the store at an address, with manifests that are up to date.

    Raises:
        InputError: it is no such address, or the bucket cannot be read.
    """
    from tokenuq_ml.object_store.mirror import Mirror

    address = Address.parse(text)
    home = mirror_folder(address)
    if home not in _mirrors:
        _mirrors[home] = Mirror(address, home)
    _mirrors[home].refresh()
    return home


def mirror_of(home: Path) -> "Mirror | SealedMirror | None":
    """Return the mirror that a folder is; None for a store in a folder."""
    return _mirrors.get(home)


def bucket_mirror(home: Path) -> "Mirror | None":
    """Return the mirror that a folder is, if this process may talk to its bucket."""
    found = _mirrors.get(home)
    return None if isinstance(found, SealedMirror) else found


def mirror_holding(path: Path) -> "Mirror | None":
    """Return the mirror that a path is in, if this process may talk to its bucket; None for a store in a folder."""
    return next((mirror for home in _mirrors if path.is_relative_to(home) and (mirror := bucket_mirror(home))), None)


def require_no_mirror(home: Path) -> None:
    """Raise if a folder that is to be used as a store is a mirror, most of whose files are in a bucket.

    Raises:
        InputError: it is one.
    """
    if home not in _mirrors and (home / STATE).is_dir():
        raise InputError(
            f"{home} is the local cache of a store in a bucket; set TOKENUQ_HOME to the address s3://bucket/prefix"
        )


class SealedMirror:
    """A mirror in a process that may not reach its bucket: that of a query. Its parent has fetched the files.

    Args:
        home: the folder.
        incomplete: the assets that are incomplete, as the parent has found.
    """

    def __init__(self, home: Path, incomplete: Iterable[str]):
        self.home, self._incomplete = home, set(incomplete)
        _mirrors[home] = self

    def refresh(self, max_age_s: float = 0.0) -> None:
        """Do nothing: the parent has done it."""

    def missing(self, files: Iterable["PublishedFile"]) -> str | None:
        """Return which of the files belongs to an incomplete asset, in a sentence; None if none does."""
        found = (file for file in files if file.asset in self._incomplete)
        return next((f"{file.path} belongs to {file.asset}, which is incomplete" for file in found), None)

    def fetch(self, file: "Recorded", hash_of: Callable[[Path], str]) -> str | None:
        """Return that the mirror does not have a file; None if it has. Fetches nothing."""
        return None if self.is_local(file) else f"{self.home / file.path} was not fetched"

    def fetch_all(self, files: Iterable["Recorded"], hash_of: Callable[[Path], str]) -> dict[str, str]:
        """Return path -> `fetch` of it, for the files that the mirror does not have."""
        found = {file.path: self.fetch(file, hash_of) for file in files}
        return {path: sentence for path, sentence in found.items() if sentence}

    def is_local(self, file: "Recorded") -> bool:
        """Return whether the mirror has a file, with its recorded size."""
        try:
            return (self.home / file.path).stat().st_size == file.bytes
        except OSError:
            return False
