"""Addresses of stores in a bucket, `s3://bucket/prefix`, the local folder that mirrors one, and paths in it."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import cache_folder

SCHEME = "s3://"
CACHE_VARIABLE = "TOKENUQ_CACHE"
CHECKPOINTS = ".checkpoints"
"""Folder of all checkpoints in a store: one folder per stage, named as its first asset."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PART = re.compile(r"[A-Za-z0-9._=-]+")


@dataclass(frozen=True)
class Address:
    """A bucket, and the prefix of the store's keys in it."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Return the address that a text is.

        Raises:
            InputError: it is not `s3://bucket` or `s3://bucket/prefix`.
        """
        if not text.startswith(SCHEME):
            raise InputError(f"TOKENUQ_HOME: {text}: a store is a folder, or an address {SCHEME}bucket/prefix")
        bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
        parts = [part for part in prefix.split("/") if part]
        if not _BUCKET.fullmatch(bucket):
            raise InputError(f"TOKENUQ_HOME: {text}: {bucket!r} is not the name of a bucket")
        for part in parts:
            # No name with a leading dot: the store's own folders have such names.
            if not _PART.fullmatch(part) or part.startswith("."):
                raise InputError(
                    f"TOKENUQ_HOME: {text}: {part!r} cannot be part of a prefix; use letters, digits, '_', '-', '=' "
                    "and '.', which is not the first"
                )
        return cls(bucket, "/".join(parts))


def is_address(home: object) -> bool:
    """Return whether the home of a store is an address, and no folder of this machine."""
    return isinstance(home, str) and "://" in home


def mirror_folder(address: Address, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that mirrors a store: in `$TOKENUQ_CACHE`, by default in the user's cache folder.

    Two services may have buckets of one name, so the endpoint is part of the folder's name. Next to `tokenuq/` in the
    cache folder, not in it: the process of a query may write there.
    """
    root = environment.get(CACHE_VARIABLE)
    folder = Path(root).expanduser() if root else cache_folder().with_name("tokenuq_stores")
    digest = hashlib.sha256(f"{endpoint(environment)} {address}".encode()).hexdigest()[:10]
    readable = f"{address.bucket}/{address.prefix}".strip("/").replace("/", "-")[:80]
    return folder.resolve() / f"{readable}-{digest}"


def node_folder(address: Address, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of a store on a node of a cluster.

    Another one than `mirror_folder`: a job, and the run that follows it, may be on one machine.
    """
    folder = mirror_folder(address, environment)
    return folder.with_name(f"{folder.name}-node")


def endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the address of the service, by the variables that all of AWS's clients read; None: Amazon S3."""
    return environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None


def is_inside(relative: str) -> bool:
    """Return whether a path is relative, names no parent folder, and is written in the one way that it can be."""
    parts = relative.split("/")
    return "\0" not in relative and not any(part in ("", ".", "..") for part in parts)
