"""Every stage that trains or measures, in two processes: one result, and the tables of one process."""

import signal
import sys
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.support.parallel_stages import ABLATION, Rerun, study_requests
from tests.support.processes import wait_until
from tests.support.tiny_study import STUDY
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.heavy
BOUND = 2e-5
"""Largest difference of a weight of the adapters, in float32 after six steps of 0.01; see `test_distributed.py`."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study's folder, and the requests of its stages."""
    folder = tmp_path_factory.mktemp("study")
    return folder, study_requests(folder)


def rerun(study, tmp_path, entrypoint, processes, name="", **more) -> Rerun:
    folder = tmp_path / f"{name or entrypoint}-{processes}"
    folder.mkdir(exist_ok=True)
    return Rerun(study[1][entrypoint], folder, processes, **more)


def finish(*arguments, command=None, **more):
    stage = rerun(*arguments, **more)
    stage.start(command)
    return stage, stage.finish()


def assert_close(first: Path, second: Path) -> None:
    """Assert that two adapters differ by rounding only."""
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=BOUND)


def test_scores_have_the_data_versions_of_one_process(study, tmp_path):
    _, one = finish(study, tmp_path, "score_teacher", 1)
    by_torchrun = [*TORCHRUN, "tokenuq_ml.stages.score_teacher"]
    for number, (command, sharding) in enumerate([(None, "none"), (by_torchrun, "none"), (None, "fsdp")]):
        more = {"command": command, "sharding": sharding}
        stage, two = finish(study, tmp_path, "score_teacher", 2, name=f"score{number}", **more)
        assert {name: result.data_version for name, result in two.items()} == {
            name: result.data_version for name, result in one.items()
        }
        assert len(two) == 4 and {result.metrics["processes"] for result in two.values()} == {2}
        assert all(check.passed for result in two.values() for check in result.checks.values())
        assert not list(stage.folder.rglob(".*.writing"))


@pytest.mark.parametrize(
    ("command", "sharding"),
    [(None, "none"), (None, "fsdp"), ([*TORCHRUN, "tokenuq_ml.stages.train_teacher"], "none")],
)
def test_a_teacher_of_two_processes_is_that_of_one(command, sharding, study, tmp_path):
    _, results = finish(study, tmp_path, "train_teacher", 2, command=command, sharding=sharding)
    found = results["baseline_teacher"]
    assert (found.metrics["processes"], found.metrics["threads"], found.metrics["steps"]) == (2, 1, 6)
    assert_close(
        study[0] / f"store/baseline_teacher/study={STUDY}/adapter",
        tmp_path / "train_teacher-2/baseline_teacher/adapter",
    )


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_student_is_trained_evaluated_and_measured_by_two_processes(sharding, study, tmp_path):
    stage, results = finish(study, tmp_path, "train_student", 2, sharding=sharding)
    assert set(results) == {"student", "evaluation", "curriculum"}
    store = study[0] / "store"
    assert_close(store / f"student/study={STUDY}/ablation={ABLATION}/adapter", stage.folder / "student/adapter")
    name = f"study={STUDY}/ablation={ABLATION}"
    ours, theirs = (read_table(folder) for folder in (stage.folder / "student/selections", store / "selections" / name))
    keys = ["step", "example_id", "position"]
    assert ours.select(*keys, "selected").sort(keys).equals(theirs.select(*keys, "selected").sort(keys))
    # The copies and checkpoints are gone.
    assert not [path for path in stage.work_dir.rglob("*") if path.is_file()]
    # What is measured of one student is the same, whoever measures it.
    measured = []
    for processes in (1, 2):
        again = rerun(study, tmp_path, "train_student", processes, name="measure", stages=("evaluation", "curriculum"))
        again.request = again.request.model_copy(update={"inputs": {**again.request.inputs, **of_student(stage)}})
        again.start()
        measured.append({name: result.data_version for name, result in again.finish().items()})
    assert measured[0] == measured[1] and set(measured[0]) == {"evaluation", "curriculum"}
    # As by the processes that trained it.
    assert measured[0] == {name: results[name].data_version for name in measured[0]}


def of_student(stage: Rerun) -> dict[str, str]:
    """Return the inputs of a request that reads a student."""
    student = stage.folder / "student"
    return {name: str(student / name) for name in ("adapter", "selections", "snapshots")}


def test_an_interrupted_training_resumes_with_as_many_processes(study, tmp_path):
    """Both write one checkpoint; the resumed training has the result of one without an interrupt."""
    longer = {"epochs": 30, "stages": ("student",)}
    stage = rerun(study, tmp_path, "train_student", 2, **longer)
    process = stage.start()
    log = iter(process.stdout.readline, "")
    next(line for line in log if "step " in line)
    # All of them, as Ray stops a job. torchrun interrupts its ranks once more.
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err[-3000:]
    assert "a checkpoint holds the state" in out and "Traceback" not in err
    wait_until(lambda: list(stage.work_dir.glob("*/checkpoint-*/COMPLETE")))
    stage.start()
    resumed = stage.finish()["student"]
    assert 0 < resumed.metrics["resumed_from_step"] < 90
    _, results = finish(study, tmp_path, "train_student", 2, name="whole", **longer)
    assert resumed.data_version == results["student"].data_version
    logs = [read_table(tmp_path / f"{name}-2/student/training_log") for name in ("train_student", "whole")]
    assert logs[0].equals(logs[1]) and logs[0]["step"].to_list() == list(range(1, 91))
    assert logs[0].select(pl.col("loss").is_finite().all()).item()
