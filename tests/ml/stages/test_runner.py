"""A stage as a process: its exit codes, its messages, and its end when the parent process ends."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from tests.support.toy_pipeline import fake_environment
from tokenuq_ml.stages import reporters, runner
from tokenuq_ml.stages.parent_watch import PARENT_PIPE
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageRequest

pytestmark = pytest.mark.slow


@pytest.fixture
def request_file(tmp_path):
    outputs = {"adapter": str(tmp_path / "adapter")}
    (tmp_path / "adapter").mkdir()
    path = tmp_path / "request.json"
    StageRequest(
        entrypoint="train_teacher",
        study="s",
        inputs={},
        work_dir=str(tmp_path),
        assets={"baseline_teacher": AssetRequest(fields={"a": 1}, code_version="1-x", outputs=outputs)},
    ).write(path)
    return path


def start(request_file, behaviour=None, **more):
    environment = {
        **os.environ,
        **fake_environment(request_file.parent),
        "FAKE_STAGE": json.dumps(behaviour or {}),
        **more.pop("env", {}),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fake_entrypoints.train_teacher", str(request_file)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def wait_for(path, seconds=20):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def test_without_dagster_progress_and_results_are_printed(request_file):
    process = start(request_file)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out.startswith("working on baseline_teacher\n")
    result = AssetResult.model_validate_json(out.split("\n", 1)[1])
    assert result.stage == "baseline_teacher"
    assert result.metrics["seconds"] >= 0 and 10 < result.metrics["peak_memory_mib"] < 2000


def test_bad_input_prints_one_sentence_and_exits_with_2(request_file):
    process = start(request_file, {"bad_input": "baseline_teacher"})
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "error: baseline_teacher.yaml: row 3: holds no answer; add one" in err and "Traceback" not in err


def test_a_bug_prints_its_traceback(request_file):
    process = start(request_file, {"crash": "baseline_teacher"})
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "RuntimeError: a bug in the stage" in err


def test_sigint_exits_with_130_even_if_the_shell_ignored_it(request_file):
    process = start(
        request_file, {"hang": "baseline_teacher"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    wait_for(request_file.parent / "pids")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    os.kill(int((request_file.parent / "pids").read_text().split()[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert out.endswith("stopped\n") and "Traceback" not in err
    assert (request_file.parent / "checkpoint").read_text() == "step 7"


def test_an_interrupt_while_the_end_is_reported_is_no_traceback(request_file, monkeypatch, capsys):
    """torchrun interrupts the ranks that are left, each of which may be reporting that it lost another."""

    def interrupted(*_):
        raise KeyboardInterrupt

    def lose_a_peer(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(sys, "argv", ["stage", str(request_file)])
    monkeypatch.setattr(runner, "known_failure", interrupted)
    assert runner._run_and_report(lose_a_peer) == runner.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_second_signal_does_not_spoil_the_checkpoint(request_file):
    """The launcher interrupts the stage, and its end does so once more."""
    read_end, write_end = os.pipe()
    process = start(
        request_file,
        {"hang": "baseline_teacher", "slow": True},
        env={PARENT_PIPE: str(read_end)},
        pass_fds=[read_end],
        start_new_session=True,
    )
    os.close(read_end)
    wait_for(request_file.parent / "pids")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    os.close(write_end)
    process.communicate(timeout=30)
    assert (request_file.parent / "checkpoint").read_text() == "step 7"


def test_the_process_and_its_children_end_when_the_parents_pipe_closes(request_file):
    read_end, write_end = os.pipe()
    process = start(
        request_file,
        {"hang": "baseline_teacher"},
        env={PARENT_PIPE: str(read_end)},
        pass_fds=[read_end],
        start_new_session=True,
    )
    wait_for(request_file.parent / "pids")
    assert process.poll() is None
    os.close(write_end)
    # The grandchild holds the pipes of the output too: the output ends only when the grandchild has ended as well.
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (request_file.parent / "checkpoint").read_text() == "step 7"
    os.close(read_end)


def test_time_and_tokens_are_counted_from_one_result_to_the_next():
    started = time.monotonic() - 2.0
    made = reporters.with_usage(AssetResult(stage="s", data_version="v", metrics={"loss": 1.0}), started, tokens=400)
    assert made.metrics["loss"] == 1.0 and made.metrics["device"] == "cpu" and made.metrics["precision"] == "no model"
    assert made.metrics["tokens_per_second"] == pytest.approx(400 / made.metrics["seconds"], rel=0.01)
    assert made.packages["torch"] == version("torch")
    assert "tokens_per_second" not in reporters.with_usage(made.model_copy(update={"metrics": {}}), started).metrics
    own = AssetResult(stage="s", data_version="v", metrics={"device": "cuda", "precision": "bfloat16"})
    assert reporters.with_usage(own, started).metrics["device"] == "cuda"


def test_the_resolved_numerics_are_part_of_the_data_version():
    made = AssetResult(stage="student", data_version="abc", metrics={"device": "cpu", "precision": "bfloat16"})
    assert reporters.with_numerics(made).data_version == "abc-cpu-bfloat16"
    assert reporters.with_numerics(AssetResult(stage="datasets", data_version="abc")).data_version == "abc"
