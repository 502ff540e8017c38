"""Runs end with the `dagster dev` above them, and with nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tokenuq_pipeline.runtime import dev_server

RUN = """
import time
from pathlib import Path
from tokenuq_pipeline.runtime.dev_server import ending_with_dev
with ending_with_dev():
    Path("started").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path("interrupted").touch()
"""


@pytest.mark.parametrize(
    ("command", "is_dev"),
    [
        ("/venv/bin/python /venv/bin/dagster dev -w workspace.yaml", True),
        ("python -m dagster dev", True),
        ("python -m dagster code-server start", False),
        ("python -m dagster_webserver", False),
        ("vi dagster.py dev", False),
        ("", False),
    ],
)
def test_which_command_is_dagster_dev(command, is_dev):
    assert dev_server.is_dev(command.split(" ")) is is_dev


def test_there_is_none_above_the_tests():
    assert dev_server._dev_above(os.getpid()) is None
    with dev_server.ending_with_dev():
        pass


@pytest.mark.slow
def test_a_run_is_interrupted_when_it_ends(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    script = tmp_path / "dagster"
    script.write_text("import subprocess, sys, time\nsubprocess.Popen([sys.executable, 'run.py'])\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    dev = subprocess.Popen([sys.executable, str(script), "dev"], env=environment, cwd=tmp_path)
    wait_until(Path(tmp_path, "started").exists)
    dev.kill()
    dev.wait()
    wait_until(Path(tmp_path, "interrupted").exists)
