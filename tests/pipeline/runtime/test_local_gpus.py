"""GPUs of this machine: which are seen, who gets which, who waits. There are none here: the locks do not look."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from tests.support.processes import wait_until
from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_pipeline.runtime.launchers import local_gpus
from tokenuq_pipeline.runtime.launchers.choice import models_at_once, several_models_fit
from tokenuq_pipeline.runtime.launchers.local_gpus import VISIBLE, reserved_gpus, visible_gpus

FOUR = {VISIBLE: "0,1,2,3"}


def request(entrypoint="train_student", **fields):
    asset = AssetRequest(fields={}, code_version="1", outputs={})
    return StageRequest(
        entrypoint=entrypoint,
        study="study",
        ablation="mle",
        assets={"student": asset},
        inputs={},
        recorded={},
        work_dir="/nowhere",
        **fields,
    )


@pytest.fixture
def reserve(tmp_path, monkeypatch):
    """Reserve some of four GPUs for a stage, until the end of the test."""
    monkeypatch.setattr(local_gpus, "POLL_S", 0.01)
    monkeypatch.delenv("TOKENUQ_PROCESSES", raising=False)
    open_ones, said = [], []

    def take(stage=None, models=None, environment=FOUR):
        context = reserved_gpus(stage or request(), models, said.append, environment, tmp_path)
        reservation = context.__enter__()
        open_ones.append(context)
        return reservation

    take.said = said
    yield take
    for context in open_ones:
        context.__exit__(None, None, None)


def seen(reservation):
    return reservation.variables.get(VISIBLE)


@pytest.mark.parametrize(
    "listed, names",
    [("2,5", ("2", "5")), ("GPU-a, GPU-b", ("GPU-a", "GPU-b")), ("", ()), ("-1", ()), ("0,-1,1", ("0",))],
)
def test_visible_gpus_are_those_that_cuda_would_see(listed, names):
    assert visible_gpus({VISIBLE: listed}) == names


def test_without_a_list_nvidia_counts(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho '  MIG 1g.10gb Device 0: (UUID: MIG-1)'\n"
        "echo 'GPU 1: H100 (UUID: GPU-2)'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    local_gpus._nvidia_gpus.cache_clear()
    try:
        assert visible_gpus({}) == ("0", "1") and models_at_once({}) == 2 and several_models_fit({})
        program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
        local_gpus._nvidia_gpus.cache_clear()
        assert visible_gpus({}) == () and models_at_once({}) is None and not several_models_fit({})
    finally:
        local_gpus._nvidia_gpus.cache_clear()


def test_slots_that_are_named_count_more_than_gpus():
    assert models_at_once(FOUR) == 4 and several_models_fit(FOUR)
    one = FOUR | {"TOKENUQ_ACCELERATOR_SLOTS": "1"}
    assert models_at_once(one) == 1 and not several_models_fit(one)
    assert models_at_once({VISIBLE: "3"}) is None and not several_models_fit({VISIBLE: "3"})


def test_stages_get_gpus_of_their_own_and_the_next_one_waits(reserve):
    first = [reserve() for _ in range(4)]
    assert [seen(one) for one in first] == ["0", "1", "2", "3"] and not reserve.said
    later = []
    thread = threading.Thread(target=lambda: later.append(reserve()))
    thread.start()
    wait_until(lambda: reserve.said)
    assert reserve.said == ["waits for a GPU of this machine; other stages use them"] and not later
    first[2].leave_to_child()
    thread.join(30)
    assert seen(later[0]) == "2"


def test_a_stage_that_needs_several_is_not_passed_over(reserve):
    first = [reserve() for _ in range(3)]
    order = []
    big = threading.Thread(target=lambda: order.append(seen(reserve(request(processes=2)))))
    big.start()
    wait_until(lambda: reserve.said)
    small = threading.Thread(target=lambda: order.append(seen(reserve())))
    small.start()
    wait_until(lambda: len(reserve.said) == 2)
    # GPU 3 is free; the one that came first waits for a second.
    assert not order
    first[0].leave_to_child()
    big.join(30)
    first[1].leave_to_child()
    small.join(30)
    assert order == ["0,3", "1"] or order == ["3,0", "1"]


def test_shares_of_a_gpu_fit_together(reserve):
    half = request(resources=StageResources(num_gpus=0.5))
    assert sorted(seen(reserve(half)) for _ in range(8)) == ["0", "0", "1", "1", "2", "2", "3", "3"]


def test_more_slots_than_gpus_share_them(reserve):
    assert sorted(seen(reserve(models=8)) for _ in range(8)) == ["0", "0", "1", "1", "2", "2", "3", "3"]


def test_a_third_of_a_gpu_fits_three_times_on_each(reserve):
    third = request(resources=StageResources(num_gpus=1 / 3))
    assert len([seen(reserve(third)) for _ in range(12)]) == 12 and not reserve.said


@pytest.mark.parametrize(
    "stage",
    [
        request("tokenize_dataset"),
        request(resources=StageResources(num_gpus=0)),
    ],
)
def test_stages_without_a_gpu_reserve_none(reserve, stage):
    assert not reserve(stage).variables


def test_one_gpu_is_left_as_it_is(reserve):
    """As before there was a choice: several stages on it are the user's wish."""
    assert not reserve(environment={VISIBLE: "0"}).variables and not reserve(environment={VISIBLE: ""}).variables


def test_auto_takes_all_and_too_many_are_refused(reserve):
    with pytest.raises(InputError, match="needs 5 GPUs by `resources` of the study, and 4 are visible here"):
        reserve(request(resources=StageResources(num_gpus=5)))
    assert sorted(seen(reserve(request(processes="auto"))).split(",")) == ["0", "1", "2", "3"]


def test_a_stage_keeps_its_gpu_after_the_step_that_started_it(reserve):
    """A child that outlives its launcher, to write a checkpoint, still uses the GPU."""
    mine = reserve(models=1, environment={VISIBLE: "0,1"})
    code = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=mine.descriptors)
    mine.leave_to_child()
    try:
        assert seen(reserve(environment={VISIBLE: "0,1"})) == "1"
    finally:
        child.communicate(b"")
    assert seen(reserve(environment={VISIBLE: "0,1"})) == "0"
