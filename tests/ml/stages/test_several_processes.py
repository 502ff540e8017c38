"""Several processes of one stage: what they exchange, whose failure is told, and that they end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, PARENT_PIPE
from tokenuq_ml.stages.rank_failures import RankFailure
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_pipeline.runtime.processes import is_running

STAGE = "tests.support.stage_of_ranks"


class Ranks:
    """The stage in two processes, each of which behaves as it is told."""

    def __init__(self, folder: Path, entrypoint: str = "train_teacher", processes: str = "2", **behaviour: str):
        self.out, self.request = folder / "adapter", folder / "request.json"
        self.out.mkdir()
        asset = AssetRequest(fields={}, code_version="1-x", outputs={"adapter": str(self.out)})
        StageRequest(
            entrypoint=entrypoint, study="s", inputs={}, work_dir=str(folder), assets={"baseline_teacher": asset}
        ).write(self.request)
        told = {rank.removeprefix("rank"): what for rank, what in behaviour.items()}
        self.environment = {**os.environ, "STAGE_OF_RANKS": json.dumps(told), "PYTHONPATH": str(ROOT)}
        self.environment |= {"TOKENUQ_THREADS": "1"}
        self.command = ["tokenuq_ml.stages.several_processes", processes, STAGE]

    def start(self, **more) -> subprocess.Popen:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.command, str(self.request)],
            env=self.environment | more.pop("env", {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **more,
        )
        return self.process

    def end(self) -> tuple[int, str, str]:
        """Wait; return exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    def exchanged(self) -> list[dict]:
        return [json.loads((self.out / f"rank{rank}.json").read_text()) for rank in range(2)]

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: all((self.out / name).exists() for name in names), 60)

    def files(self, start: str) -> list[str]:
        return sorted(path.name for path in self.out.glob(f"{start}*"))


@pytest.mark.slow
def test_ranks_exchange_and_the_refusal_of_one_is_the_stages(tmp_path):
    """One case of all for every test run, since each takes two processes with PyTorch."""
    ranks = Ranks(tmp_path, rank1="refuse")
    ranks.start()
    code, out, err = ranks.end()
    assert code == 2, err[-3000:]
    assert "error: sums.jsonl: row 1: holds no answer; add one\n" in err and "Traceback" not in err
    assert out.count("has exchanged") == 1 and ranks.files("done") == []
    first, second = ranks.exchanged()
    assert first.pop("pid") != second.pop("pid")
    assert [(one.pop("rank"), one.pop("is_main")) for one in (first, second)] == [(0, True), (1, False)]
    assert [one.pop("dealt") for one in (first, second)] == [
        [list(range(count))[rank::2] for count in range(6)] for rank in range(2)
    ]
    # Everything else is the same on both.
    assert first == second
    assert first["size"] == 2 and first["threads"] == "1" and first["any"] == [False, True]
    assert first["gathered"] == ["of 0", "of 1", "of 1"] and first["on_main"] == [0, 1]
    assert first["merged"] == [[item * 10 for item in range(count)] for count in range(6)]
    assert first["alone"] == [0, 1, 2]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        ({}, 0, ""),
        ({"rank0": "refuse", "rank1": "refuse"}, 2, "error: sums.jsonl: row 0: holds no answer; add one"),
        ({"rank1": "crash"}, 1, "RuntimeError: a bug of rank 1"),
        ({"rank0": "crash"}, 1, "RuntimeError: a bug of rank 0"),
        ({"rank1": "kill"}, -signal.SIGKILL, ""),
        ({"rank0": "kill"}, -signal.SIGKILL, ""),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(behaviour, code, said, tmp_path):
    ranks = Ranks(tmp_path, **behaviour)
    ranks.start()
    found, _, err = ranks.end()
    assert found == code, err[-3000:]
    assert said in err and err.count("error: sums.jsonl") == (code == 2)
    assert "Connection" not in err and "ChildFailedError" not in err
    assert ranks.files("done") == (["done0", "done1"] if code == 0 else [])
    assert not any(is_running(one["pid"]) for one in ranks.exchanged())


@pytest.mark.heavy
@pytest.mark.parametrize("by_cluster", [False, True])
def test_an_interrupt_reaches_every_process_once(by_cluster, tmp_path):
    """A cluster that stops a job interrupts the ranks too, which torchrun does already."""
    ranks = Ranks(tmp_path, rank0="wait", rank1="wait")
    process = ranks.start()
    ranks.wait_for("waiting0", "waiting1")
    for pid in [one["pid"] for one in ranks.exchanged()] if by_cluster else []:
        os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = ranks.end()
    assert code == 130 and ranks.files("checkpoint") == ["checkpoint0", "checkpoint1"], err[-3000:]
    assert "Traceback" not in err


@pytest.mark.heavy
def test_no_process_outlives_one_that_is_killed(tmp_path):
    ranks = Ranks(tmp_path, rank0="wait", rank1="wait")
    process = ranks.start()
    ranks.wait_for("waiting0", "waiting1")
    process.kill()
    process.wait()
    pids = [one["pid"] for one in ranks.exchanged()]
    wait_until(lambda: not any(is_running(pid) for pid in pids), 5)
    assert ranks.files("checkpoint") == []
    process.communicate()


@pytest.mark.heavy
@pytest.mark.parametrize(("closes", "code"), [(True, -signal.SIGKILL), (False, 75)])
def test_every_process_writes_a_checkpoint_if_the_parent_is_gone_or_silent(closes, code, tmp_path):
    """A parent that has died sees no exit code: the group is killed at the end, with what it may have started."""
    lease_s = 10.0
    ranks, (read_end, write_end) = Ranks(tmp_path, rank0="wait", rank1="wait"), os.pipe()
    ranks.start(pass_fds=[read_end], env={PARENT_PIPE: str(read_end), LEASE_SECONDS: str(lease_s)})
    os.close(read_end)
    deadline = time.monotonic() + 60
    while len(ranks.files("waiting")) < 2 and time.monotonic() < deadline:
        os.write(write_end, b".")
        time.sleep(0.2)
    if closes:
        os.close(write_end)
    # Otherwise half of the lease's time passes without a heartbeat.
    found, _, err = ranks.end()
    assert found == code, err[-3000:]
    assert ranks.files("checkpoint") == ["checkpoint0", "checkpoint1"]
    if not closes:
        os.close(write_end)


@pytest.mark.heavy
def test_torchrun_itself_runs_a_stage(tmp_path):
    ranks = Ranks(tmp_path)
    ranks.command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", STAGE]
    ranks.start()
    code, out, err = ranks.end()
    assert code == 0, err[-3000:]
    assert ranks.files("done") == ["done0", "done1"] and out.count("has exchanged") == 1


@pytest.mark.heavy
def test_a_stage_of_one_process_has_nothing_to_do_on_the_second_rank(tmp_path):
    ranks = Ranks(tmp_path, entrypoint="correlate")
    ranks.start()
    code, _, err = ranks.end()
    assert code == 0, err[-3000:]
    assert ranks.files("rank") == ["rank0.json"] and ranks.files("done") == ["done0"]


@pytest.mark.heavy
def test_auto_without_gpus_is_one_process(tmp_path):
    ranks = Ranks(tmp_path, processes="auto")
    ranks.start(env={"CUDA_VISIBLE_DEVICES": ""})
    code, _, err = ranks.end()
    assert code == 0, err[-3000:]
    assert json.loads((ranks.out / "rank0.json").read_text())["size"] == 1


FAILURES = {
    "told": RankFailure(1, 2, "no answer", time=5.0, is_told=True),
    "told by all": RankFailure(0, 2, "no answer", time=5.1, is_told=True),
    "told later": RankFailure(0, 1, traceback="a bug", time=6.0, is_told=True),
    "lost": RankFailure(0, 1, traceback="closed by peer", time=4.0, lost_peer=True, is_told=True),
    "killed": RankFailure(1, -9),
    "stopped": RankFailure(0, 130),
}


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("told later", "told"), "told"),
        (("told", "told by all"), "told by all"),
        (("lost", "told"), "told"),
        (("lost", "killed"), "killed"),
        (("stopped", "killed"), "killed"),
        (("stopped", "lost"), "lost"),
        (("stopped",), "stopped"),
    ],
)
def test_the_cause_comes_before_what_it_brings_about(names, first):
    assert min((FAILURES[name] for name in names), key=lambda failure: failure.order) is FAILURES[first]
