"""A job of a cluster whose store is away for a while: its stage works on, but never when another one may."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.job_files import JobDescription
from tokenuq_ml.stages.provenance import code_hash

pytestmark = pytest.mark.heavy
LEASE_S = 12.0
STAGE = """
import sys, time
from pathlib import Path
from tokenuq_ml.stages.parent_watch import ParentWatch
ParentWatch.start()
folder = Path(sys.argv[1])
(folder / "started").touch()
try:
    while not (folder / "finish").exists():
        time.sleep(0.05)
except KeyboardInterrupt:
    (folder / "interrupted").touch()
    sys.exit(130)
"""


@pytest.fixture
def job(tmp_path):
    """A job whose stage has started; `launcher`, which it reads, can be made to block as a file server that is away."""
    folder, seen = tmp_path / "asset" / "jobs" / "job", tmp_path / "seen"
    folder.mkdir(parents=True)
    seen.mkdir()
    description = JobDescription(
        arguments=["-c", STAGE, str(seen)], code=code_hash(), expiry_s=LEASE_S, unattended_s=900, grace_s=5
    )
    job_files.write_json(folder / job_files.DESCRIPTION, description)
    job_files.write_environment(folder, {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]})
    for name in (job_files.LAUNCHER, job_files.MESSAGES):
        (folder / name).touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenuq_ml.stages.cluster_job", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until((seen / "started").exists, 60)
    yield process, folder, seen
    process.kill()
    process.communicate()


def send_away(folder) -> None:
    """Let whoever reads the launcher's words wait, in place of an answer or an error."""
    os.mkfifo(folder / "fifo")
    os.replace(folder / "fifo", folder / job_files.LAUNCHER)


def bring_back(folder) -> None:
    writer = os.open(folder / job_files.LAUNCHER, os.O_WRONLY | os.O_NONBLOCK)
    (folder / "file").touch()
    os.replace(folder / "file", folder / job_files.LAUNCHER)
    os.close(writer)


def test_a_store_that_is_away_for_half_of_the_lease_costs_nothing(job):
    process, folder, seen = job
    send_away(folder)
    time.sleep(LEASE_S * 0.62)
    assert process.poll() is None
    bring_back(folder)
    before = (folder / job_files.BEAT).stat().st_mtime
    wait_until(lambda: (folder / job_files.BEAT).stat().st_mtime > before, 10)
    (seen / "finish").touch()
    assert process.wait(30) == 0 and not (seen / "interrupted").exists()
    assert job_files.read_end(folder).code == 0


def test_a_stage_whose_store_stays_away_ends_before_another_may_begin(job):
    process, folder, seen = job
    send_away(folder)
    assert process.wait(LEASE_S * 3) == 128 + signal.SIGKILL
    beat, end = ((folder / name).stat().st_mtime for name in (job_files.BEAT, job_files.ENDED))
    # Others take the job for dead after the lease's time.
    assert end - beat < LEASE_S and not (seen / "interrupted").exists()
    assert job_files.read_end(folder).code == -signal.SIGKILL


def test_who_has_deleted_the_folder_has_taken_the_job(job):
    process, folder, _ = job
    os.rename(folder, folder.with_name("gone"))
    assert process.wait(30) != 0


def test_the_launcher_is_heard(job):
    process, folder, seen = job
    job_files.say(folder, job_files.STOP)
    assert process.wait(30) == 130 and (seen / "interrupted").exists()
