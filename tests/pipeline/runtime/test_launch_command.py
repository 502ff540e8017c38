"""The command of a stage: one process or several, by the study, the environment, and what the stage can do."""

import sys

import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import PARALLEL_STAGES, StageRequest
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.runtime.launch_command import PROCESSES, processes_of, stage_command


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
    entrypoints = {group.entrypoint for group in stage_groups(toy_config(processes=2))}
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
