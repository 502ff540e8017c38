"""A scoring by several processes that is killed or interrupted: the next one has the data versions of one process."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tests.support.ray_clusters import two_nodes
from tests.support.scored_teacher import ENDS, write_teacher
from tests.support.scored_teacher import request as scored_request
from tests.support.stage_results import results_in

pytestmark = pytest.mark.heavy
STAGE = "tests.support.scored_teacher"
BY = {
    "one": ["-m", STAGE],
    "ranks": ["-m", "tokenuq_ml.stages.several_processes", "2", STAGE],
    "sharing ranks": ["-m", "tokenuq_ml.stages.several_processes", "2", STAGE],
    "cluster": ["-m", "tokenuq_ml.stages.measure_on_ray", "2", STAGE],
}


@pytest.fixture(scope="module")
def cluster():
    with two_nodes({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}) as nodes:
        yield {"RAY_ADDRESS": f"127.0.0.1:{nodes.gcs_port}", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_teacher(folder)
    return folder, versions(*end(start(folder, "whole", "one"))[:2])


def start(folder, out, by, environment=None, ends="") -> subprocess.Popen:
    sharding = "fsdp" if by == "sharing ranks" else "none"
    scored_request(folder, out).model_copy(update={"sharding": sharding}).write(folder / f"{out}.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENUQ_THREADS": "1", ENDS: ends, **(environment or {})}
    return subprocess.Popen(
        [sys.executable, *BY[by], str(folder / f"{out}.json")],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def end(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def versions(code: int, out: str) -> dict[str, str]:
    assert code == 0, out
    return {result["stage"]: result["data_version"] for result in results_in(out)}


def linked(whole, tmp_path):
    for name in ("model", "adapter", "tokenized_dataset"):
        (tmp_path / name).symlink_to(whole[0] / name)
    return tmp_path


@pytest.mark.parametrize(
    ("first", "second"),
    [("ranks", "one"), ("one", "ranks"), ("cluster", "cluster"), ("sharing ranks", "sharing ranks")],
)
def test_a_killed_scoring_is_resumed_by_any_number_of_processes(first, second, whole, tmp_path, request):
    environment = request.getfixturevalue("cluster") if "cluster" in (first, second) else {}
    folder = linked(whole, tmp_path)
    code, out, err = end(start(folder, "killed", first, environment, "kill 3"))
    assert code == -signal.SIGKILL and not list(results_in(out)), out + err[-3000:]
    code, out, err = end(start(folder, "resumed", second, environment))
    # A part has more than one shard where two are complete at the same moment.
    resumed = re.search(r"resuming after (\d+) shards, which an earlier run has measured", out)
    assert resumed and int(resumed[1]) >= 3, out + err[-3000:]
    assert versions(code, out) == whole[1] and len(whole[1]) == 4
    assert not [path for path in (folder / "work").rglob("*") if path.is_file()]


@pytest.mark.parametrize("by", ["ranks", "sharing ranks"])
def test_interrupted_ranks_keep_what_they_have_finished(by, whole, tmp_path):
    folder = linked(whole, tmp_path)
    process = start(folder, "stopped", by, ends="wait 2")
    wait_until(lambda: (folder / "work/waiting").exists() or process.poll() is not None, 120)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = end(process)
    assert code == 130 and "Traceback" not in err, err[-3000:]
    assert re.search(r"the first \d+ shards are kept, and the next run resumes after them", out)
    (folder / "work/waiting").unlink()
    assert versions(*end(start(folder, "resumed", "one"))[:2]) == whole[1]
    markers = [json.loads(path.read_text()) for path in folder.rglob("COMPLETE")]
    assert markers == []
