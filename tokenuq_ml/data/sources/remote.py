"""Data at an address (`s3://`, `gs://`, `https://`): downloaded once by fsspec, then read like local files."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.system_errors import is_system_error

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_BUCKETS = frozenset(_PACKAGES)
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}
_NOT_FOUND = 404
_CHECKSUMS = {"ETag", "Content-MD5", "Digest"}


def is_address(path: str) -> bool:
    """Return whether a path is an address that fsspec opens."""
    return "://" in path


def require(spec: DatasetSpec) -> None:
    """Check that the dataset's address can be reached, without a download.

    Raises:
        InputError: a package is missing, or nothing is there.
    """
    assert spec.path is not None
    with _input_errors(spec):
        filesystem, inside = _open(spec.path)
        if _scheme(spec.path).startswith("http"):
            # `exists` says no to every error of the network.
            filesystem.info(inside)
        elif not filesystem.exists(inside):
            raise FileNotFoundError(spec.path)


def local_copy(spec: DatasetSpec) -> Path:
    """Return a local copy of the file or folder at the dataset's address, from the cache if nothing has changed.

    The copy is in the cache of `datasets`. What the server states about its files (version, size, time) tells whether
    they have changed; a web server that states no version is asked again each time.

    Raises:
        InputError: a package is missing, nothing is there, or the download fails.
    """
    assert spec.path is not None
    with _input_errors(spec):
        filesystem, inside = _open(spec.path)
        is_web = _scheme(spec.path).startswith("http")
        # A web server has no folders.
        is_folder = not is_web and filesystem.isdir(inside)
        files = sorted(filesystem.find(inside)) if is_folder else [inside]
        states = [filesystem.info(file) for file in files]
        name = PurePosixPath(inside.rstrip("/").split("?")[0]).name or "data"
        digest = hashlib.sha256(str([spec.path, *states]).encode()).hexdigest()[:16]
        copy = _cache() / digest / name
        if copy.exists() and is_web and not _CHECKSUMS & states[0].keys():
            copy.unlink()
        if not copy.exists():
            _download(filesystem, inside, files if is_folder else None, copy)
        return copy


def _download(filesystem: Any, inside: str, files: list[str] | None, copy: Path) -> None:
    """Download a file, or the `files` of a folder; the copy appears when it is complete."""
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        staging = Path(folder, copy.name)
        if files is None:
            filesystem.get_file(inside, str(staging))
        else:
            for file in files:
                target = staging / PurePosixPath(file).relative_to(inside.rstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(file, str(target))
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists():
            shutil.move(staging, copy)


def _cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE, "tokenuq_files")


def _open(address: str) -> tuple[Any, str]:
    import fsspec

    filesystem, inside = fsspec.url_to_fs(address)
    # fsspec keeps file systems and their listings for the process; files may have changed since.
    filesystem.invalidate_cache()
    return filesystem, inside


def _scheme(address: str) -> str:
    return address.split("://")[0].split("::")[-1]


@contextmanager
def _input_errors(spec: DatasetSpec) -> Iterator[None]:
    """Turn errors of the block into InputErrors that say what to do."""
    where = f"dataset {spec.name}: {spec.path}"
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__ if _scheme(str(spec.path)).startswith("http") else None
        if cause is not None and getattr(cause, "status", None) != _NOT_FOUND:
            raise _unreadable(where, cause) from None
        what = "no such file" if _scheme(str(spec.path)) not in _BUCKETS else "no such bucket, folder or file"
        raise InputError(f"{where}: {what}; correct `path:` of {spec.name} in datasets.yaml") from None
    except (ImportError, ValueError) as error:
        # fsspec raises ValueError for a scheme that it does not know.
        package = _PACKAGES.get(_scheme(str(spec.path)))
        if isinstance(error, ValueError) and package and find_spec(package):
            raise _unreadable(where, error) from None
        what = f"pip install {package}" if package else "download the files and name their folder"
        raise InputError(f"{where}: cannot be opened ({_first_line(error)}); {what}") from None
    except Exception as error:
        if is_system_error(error):
            raise
        # Each file system has errors of its own: of access, of the network, of its server.
        raise _unreadable(where, error) from None


def _unreadable(where: str, error: BaseException) -> InputError:
    return InputError(
        f"{where}: cannot be read ({type(error).__name__}: {_first_line(error)}); check the address and the access to "
        "it, or download the files and name their folder"
    )


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:200]
