"""Ranks that Ray Train places on two nodes: one group, the first failure's exit code, one interrupt, and lost nodes."""

import json
import os
import signal
import subprocess
import sys
import traceback

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tests.support.ray_clusters import two_nodes
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.stages.rank_process import START, RankProgram
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.train_on_ray import _reason


@pytest.fixture(scope="module")
def cluster():
    with two_nodes({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}) as nodes:
        yield nodes


class Ranks:
    """A stage in two ranks, each of which has the only processor of its node."""

    def __init__(self, cluster, folder, **behaviour):
        self.cluster, self.out, self.request = cluster, folder / "adapter", folder / "request.json"
        self.out.mkdir()
        asset = AssetRequest(fields={}, code_version="1-x", outputs={"adapter": str(self.out)})
        StageRequest(
            entrypoint="train_teacher", study="s", inputs={}, work_dir=str(folder), assets={"baseline_teacher": asset}
        ).write(self.request)
        told = {rank.removeprefix("rank"): what for rank, what in behaviour.items()}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tokenuq_ml.stages.train_on_ray",
                "2",
                "tests.support.stage_of_ranks",
                str(self.request),
            ],
            env={
                **os.environ,
                "RAY_ADDRESS": f"127.0.0.1:{cluster.gcs_port}",
                "RAY_AUTH_MODE": "disabled",
                "TOKENUQ_THREADS": "1",
                "TOKENUQ_JOB_VARIABLES": "STAGE_OF_RANKS",
                "STAGE_OF_RANKS": json.dumps(told),
                "PYTHONPATH": str(ROOT),
            },
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def end(self):
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err

    def files(self, start):
        return sorted(path.name for path in self.out.glob(f"{start}*"))


@pytest.mark.heavy
def test_ranks_on_two_nodes_are_one_group(cluster, tmp_path):
    ranks = Ranks(cluster, tmp_path)
    code, out, err = ranks.end()
    assert code == 0, err[-3000:]
    assert ranks.files("done") == ["done0", "done1"] and out.count("has exchanged") == 1
    first, second = (json.loads((ranks.out / f"rank{rank}.json").read_text()) for rank in range(2))
    assert (first["rank"], second["rank"], first["size"], first["threads"]) == (0, 1, 2, "1")
    assert first["gathered"] == second["gathered"] == ["of 0", "of 1", "of 1"]


@pytest.mark.heavy
def test_the_refusal_of_a_rank_is_the_stages(cluster, tmp_path):
    ranks = Ranks(cluster, tmp_path, rank1="refuse", rank0="wait")
    code, _, err = ranks.end()
    assert code == 2, err[-3000:]
    assert "error: sums.jsonl: row 1: holds no answer; add one\n" in err and "Traceback" not in err


@pytest.mark.heavy
def test_an_interrupt_reaches_every_rank(cluster, tmp_path):
    ranks = Ranks(cluster, tmp_path, rank0="wait", rank1="wait")
    wait_until(lambda: len(ranks.files("waiting")) == 2, 400)
    ranks.process.send_signal(signal.SIGINT)
    code, _, err = ranks.end()
    assert code == 130 and ranks.files("checkpoint") == ["checkpoint0", "checkpoint1"], err[-3000:]


@pytest.mark.heavy
def test_all_ranks_start_again_after_a_lost_node(cluster, tmp_path):
    """The stage then resumes from its checkpoint: here a rank finds that it has waited before, and waits no more."""
    ranks = Ranks(cluster, tmp_path, rank0="wait_once", rank1="wait_once")
    wait_until(lambda: len(ranks.files("waiting")) == 2, 400)
    cluster.kill("second")
    cluster.start_worker("second")
    code, out, err = ranks.end()
    assert code == 0, out[-1000:] + err[-3000:]
    assert ranks.files("done") == ["done0", "done1"]


def test_a_node_that_does_not_see_the_store_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(START, "first")
    program = RankProgram("module", "/elsewhere/request.json", tmp_path / "ranks", {}, code_hash())
    with pytest.raises(RuntimeError, match=r"^this node does not see /elsewhere/request.json: ") as failure:
        program.run({"RANK": "1"})
    assert not (tmp_path / "ranks").exists()
    from ray.train.v2.api.exceptions import WorkerGroupError

    trace = "".join(traceback.format_exception(failure.value))
    assert _reason([WorkerGroupError("1 of 2", {1: RuntimeError(trace)})]) == str(failure.value)
    assert _reason([RuntimeError("no room\nat all")]) == "no room" and _reason([]) == "no rank has ended"
