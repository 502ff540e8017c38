"""The command of a stage: one process or several, by the study, the environment, and what the stage can do."""

import sys

import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import PARALLEL_STAGES, AssetRequest, StageRequest
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.runtime.launch_command import PROCESSES, cluster_command, processes_of, stage_command
from tokenuq_pipeline.runtime.launchers.job_environment import OF_A_SPREAD_JOB, reserved, spreads, threads
from tokenuq_pipeline.runtime.launchers.ray_cluster import NodeResources


def request(entrypoint="train_teacher", **more):
    return StageRequest(entrypoint=entrypoint, assets={}, inputs={}, work_dir="/work", **more)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(PROCESSES, raising=False)


def test_one_process_is_the_entry_point_itself():
    found = stage_command("package", request(), "/request.json", processes_of(request()))
    assert found == [sys.executable, "-m", "package.train_teacher", "/request.json"]


@pytest.mark.parametrize("processes", [2, "auto"])
def test_several_processes_are_started_by_torchrun(processes):
    one = request(processes=processes)
    assert stage_command("package", one, "/request.json", processes_of(one)) == [
        sys.executable,
        "-m",
        "tokenuq_ml.stages.several_processes",
        str(processes),
        "package.train_teacher",
        "/request.json",
    ]


@pytest.mark.parametrize(("text", "processes"), [("3", 3), ("auto", "auto"), ("1", 1), ("", 2)])
def test_the_environment_takes_the_place_of_the_study(text, processes, monkeypatch):
    monkeypatch.setenv(PROCESSES, text)
    assert processes_of(request(processes=2)) == processes


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_another_value_of_the_environment_is_refused(text, monkeypatch):
    monkeypatch.setenv(PROCESSES, text)
    with pytest.raises(InputError, match=r"TOKENUQ_PROCESSES is .*; set it to a number from 1, or to auto"):
        processes_of(request())


def test_stages_that_neither_train_nor_measure_are_one_process(monkeypatch):
    monkeypatch.setenv(PROCESSES, "2")
    # A stage of studies that select by the teacher's change.
    entrypoints = {group.entrypoint for group in stage_groups(toy_config(processes=2))} | {"measure_change"}
    assert {name for name in entrypoints if processes_of(request(name, processes=2)) == 2} == PARALLEL_STAGES


def test_the_study_says_it_and_no_version_changes():
    plain, several = stage_groups(toy_config()), stage_groups(toy_config(processes="auto"))
    assert {group.processes for group in plain} == {1}
    assert {group.processes for group in several if group.assets[0].study} == {"auto"}
    versions = [[asset.code_version for group in groups for asset in group.assets] for groups in (plain, several)]
    assert versions[0] == versions[1]


def test_an_optimiser_batch_must_be_shared_equally():
    with pytest.raises(ValueError, match=r"'processes' is 3, which does not divide train\.batch_size 8"):
        toy_config(processes=3)
    with pytest.raises(ValueError, match="processes"):
        toy_config(processes=0)


def test_a_model_is_shared_between_several_processes_only():
    with pytest.raises(ValueError, match=r"'sharding' is 'fsdp', which shares .* and 'processes' is 1"):
        toy_config(sharding="fsdp")
    plain, shared = stage_groups(toy_config()), stage_groups(toy_config(sharding="fsdp", processes="auto"))
    assert {group.sharding for group in shared if group.assets[0].study} == {"fsdp"}
    versions = [[asset.code_version for group in groups for asset in group.assets] for groups in (plain, shared)]
    assert versions[0] == versions[1]


def of_assets(entrypoint, *stages, **more):
    asset = AssetRequest(fields={}, code_version="1-x", outputs={})
    return request(entrypoint, **more).model_copy(update={"assets": dict.fromkeys(stages, asset)})


MEASURING = [("score_teacher", "token_losses"), ("train_student", "evaluation"), ("train_student", "curriculum")]


@pytest.mark.parametrize(("entrypoint", "stage"), MEASURING)
def test_on_a_cluster_batches_of_measuring_stages_are_computed_by_processes_of_their_own(entrypoint, stage):
    """Each reserves a share of what the study reserves for the stage."""
    one = of_assets(entrypoint, stage, processes=4, resources=StageResources(num_cpus=8, memory="8GB"))
    found = cluster_command("package", one, "/r.json", 4)
    assert found[1:] == ["-m", "tokenuq_ml.stages.measure_on_ray", "4", f"package.{entrypoint}", "/r.json"]
    assert cluster_command("package", one, "/r.json", 1) == stage_command("package", one, "/r.json", 1)
    needs = reserved(one, cluster_gpus=16)
    assert needs == {"CPU": 2.0, "GPU": 1, "memory": 2e9}
    assert threads(one, needs, {})["TOKENUQ_THREADS"] == "2"


@pytest.mark.parametrize(("entrypoint", "stage"), MEASURING)
def test_on_a_cluster_processes_that_share_the_weights_measure_as_ranks(entrypoint, stage):
    one = of_assets(entrypoint, stage, processes=4, sharding="fsdp", resources=StageResources(num_cpus=8))
    assert cluster_command("package", one, "/r.json", 4) == stage_command("package", one, "/r.json", 4)
    assert "tokenuq_ml.stages.train_on_ray" in cluster_command("package", one, "/r.json", 4, spreads=True)
    assert reserved(one, cluster_gpus=16) == {"CPU": 8.0, "GPU": 4}


@pytest.mark.parametrize(
    ("entrypoint", "stages"), [("train_teacher", ["baseline_teacher"]), ("train_student", ["student", "evaluation"])]
)
def test_on_a_cluster_ranks_that_train_are_processes_of_one_node(entrypoint, stages):
    one = of_assets(entrypoint, *stages, processes=4, resources=StageResources(num_cpus=8))
    assert cluster_command("package", one, "/r.json", 4) == stage_command("package", one, "/r.json", 4)
    needs = reserved(one, cluster_gpus=16)
    assert needs == {"CPU": 8.0, "GPU": 4}
    assert threads(one, needs, {})["TOKENUQ_THREADS"] == "2"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # One node has room for all; none has, and the cluster has; it has not either, so that the job waits for a node.
        (({"CPU": 8.0, "GPU": 4.0},), False),
        (({"CPU": 8.0, "GPU": 2.0},) * 2, True),
        (({"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 2.0}), False),
    ],
)
def test_ranks_that_train_spread_over_nodes_if_none_has_room_for_all(nodes, expected):
    one = of_assets("train_teacher", "baseline_teacher", processes=4, resources=StageResources(num_cpus=8))
    assert spreads(one, NodeResources(nodes)) is expected
    assert not spreads(one.model_copy(update={"processes": 1}), NodeResources(nodes))
    command = cluster_command("package", one, "/r.json", 4, expected)
    assert command[2] == f"tokenuq_ml.stages.{'train_on_ray' if expected else 'several_processes'}"
    assert threads(one, OF_A_SPREAD_JOB, {})["TOKENUQ_THREADS"] == "2"
