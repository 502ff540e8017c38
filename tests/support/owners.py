"""Owners on other machines, with heartbeats of any age."""

import dataclasses
import json
import os
import time
from pathlib import Path

from tokenuq_pipeline.runtime.owners import FOLDER, Owner


def elsewhere(pid: int = 7, host: str = "another-host") -> Owner:
    """Return an owner whose pid says nothing here."""
    return dataclasses.replace(Owner.current(), pid=pid, host=host)


def write_heartbeat(owner: Owner, home: Path, age: float = 0.0, expiry_s: float = 60.0) -> Path:
    """Write an owner's heartbeat as it would itself, `age` seconds ago."""
    path = home / FOLDER / str(owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.write_text(json.dumps({"expiry_s": expiry_s, "file": [path.stat().st_dev, path.stat().st_ino]}))
    os.utime(path, (time.time() - age,) * 2)
    return path
