"""Small file systems in memory, for tests of full disks."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, kib: int, inodes: int | None = None, read_only: bool = False) -> Iterator[Path]:
    """Mount a small disk at `folder`; skip the test where the machine refuses mounts."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={kib}k" + (f",nr_inodes={inodes}" if inodes else "") + (",ro" if read_only else "")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk in memory cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
