"""The files of leases: `.leases/<asset>/<number>.lease`. `leases.py` decides who may take the next number.

A file appears complete, by a hard link where the file system has them, and never in place of another one.
"""

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tokenuq_pipeline.runtime.owners import Owner, file_time

FOLDER, SUFFIX = ".leases", ".lease"
KEPT_S = 3600.0
"""How long files of earlier numbers stay. A machine that sees changes late must not create one of them again."""


@dataclass(frozen=True)
class LeaseRecord:
    """One lease file."""

    number: int
    age_s: float
    """Since it was written."""
    owner: Owner | None
    """None: the file cannot be read; its writer may have been killed."""
    token: str = ""
    makes: tuple[str, ...] = ()
    """The assets that are made under this lease."""
    child: str = ""
    """`process_name` of the child that works for the owner; it may outlive its parent, to write a checkpoint."""
    released: bool = False

    def content(self) -> bytes:
        """Return what the file holds."""
        fields = {"owner": str(self.owner), "token": self.token, "makes": self.makes, "child": self.child}
        return json.dumps({**fields, "released": self.released}).encode()


class LeaseFiles:
    """The lease files of a store."""

    def __init__(self, home: Path):
        self.home = home

    def latest(self, asset: str) -> LeaseRecord | None:
        """Return the current lease of an asset, also one that was released; None if there was none."""
        numbers = self._numbers(asset)
        number = max(numbers, default=0)
        # A machine may see a file before the folder's listing shows it.
        while (self._path(asset, number + 1)).exists():
            number += 1
        return self._read(asset, number) if number else None

    def create(self, asset: str, record: LeaseRecord) -> bool:
        """Create the file of a number; return False if another process has it, or a higher one."""
        path = self._path(asset, record.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{record.token}")
        temporary.write_bytes(record.content())
        try:
            if not self._link(temporary, path, asset, record):
                return False
        finally:
            temporary.unlink(missing_ok=True)
        if max(self._numbers(asset), default=0) > record.number:
            path.unlink(missing_ok=True)
            return False
        self._forget_earlier(asset, record.number)
        return True

    def rewrite(self, asset: str, record: LeaseRecord) -> None:
        """Replace the content of an existing lease file."""
        path = self._path(asset, record.number)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        temporary.write_bytes(record.content())
        if path.exists():
            os.replace(temporary, path)
        else:
            temporary.unlink()

    def folder(self, asset: str) -> Path:
        """Return the folder of an asset's lease files."""
        return self.home / FOLDER / asset

    def _path(self, asset: str, number: int) -> Path:
        return self.folder(asset) / f"{number:08d}{SUFFIX}"

    def _numbers(self, asset: str) -> list[int]:
        names = (path.stem for path in self.folder(asset).glob(f"*{SUFFIX}"))
        return [int(name) for name in names if name.isdigit()]

    def _read(self, asset: str, number: int) -> LeaseRecord:
        try:
            with open(self._path(asset, number), "rb") as file:
                age = file_time(self.home) - os.fstat(file.fileno()).st_mtime
                content = file.read()
        except OSError:
            return LeaseRecord(number, 0.0, None)
        return parsed_record(number, age, content)

    def _link(self, temporary: Path, path: Path, asset: str, record: LeaseRecord) -> bool:
        """Give a complete file its name unless that exists; return whether it did."""
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may answer so to a repeated request of which the first one succeeded.
            return self._read(asset, record.number).token == record.token
        except OSError:
            # A file system without hard links.
            try:
                with open(path, "xb") as file:
                    file.write(record.content())
            except FileExistsError:
                return False
        return True

    def _forget_earlier(self, asset: str, number: int) -> None:
        now = file_time(self.home)
        for path in self.folder(asset).iterdir():
            with contextlib.suppress(OSError):
                is_lease = path.suffix == SUFFIX and path.stem.isdigit()
                earlier = int(path.stem) < number if is_lease else path.name.startswith(".")
                if earlier and now - path.stat().st_mtime > KEPT_S:
                    path.unlink()


def parsed_record(number: int, age_s: float, content: bytes) -> LeaseRecord:
    """Return what a lease file holds; one that cannot be read has no owner."""
    try:
        known = json.loads(content)
        owner, makes = Owner.parse(known["owner"]), tuple(map(str, known["makes"]))
        return LeaseRecord(number, age_s, owner, known["token"], makes, known["child"], known["released"] is True)
    except (ValueError, KeyError, TypeError):
        return LeaseRecord(number, age_s, None)
