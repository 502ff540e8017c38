"""Dagster's home is full while the UI runs: a new run is refused in words, and the UI serves on once there is space."""

import json
import os

import pytest

from tests.support.dev_server import DevServer
from tests.support.disks import small_disk
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.heavy
MODEL = ["models", "tiny"]
DONE = ("SUCCESS", "FAILURE", "CANCELED")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "behaviour.json").write_text(json.dumps({"wait": "models"}))
    with small_disk(tmp_path / "toy" / "dagster_home", kib=60_000):
        with DevServer(tmp_path, FAKE_STAGE=f"@{tmp_path / 'behaviour.json'}") as server:
            yield server


def fill(folder):
    """Take all space of the disk of a folder; return the file that holds it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler


def test_the_ui_outlives_a_full_dagster_home(server):
    home = server.toy.folder / "dagster_home"
    first = server.launch(MODEL)
    work_dir = server.toy.store.home / ".checkpoints/models/tiny"
    pids = server.wait(lambda: (work_dir / "pids").exists() and (work_dir / "pids").read_text().split())
    filler = fill(home)
    assert os.statvfs(home).f_bavail == 0
    # A run has no place for its events: it is refused in words, and what runs ends, with or without its record.
    with pytest.raises(AssertionError, match="disk I/O error|disk is full|No space left"):
        server.launch(["datasets", "toy"])
    (work_dir / "go").touch()
    server.wait(lambda: not any(is_running(int(pid)) for pid in pids))
    assert server.graphql("{ version }")
    filler.unlink()
    server.wait(lambda: server.status(first) in DONE)
    (server.folder / "behaviour.json").write_text("{}")
    again = server.launch(MODEL)
    server.wait(lambda: server.status(again) in DONE)
    assert server.status(again) == "SUCCESS" and server.toy.store.is_complete("models/tiny")
