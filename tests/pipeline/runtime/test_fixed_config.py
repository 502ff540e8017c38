"""What the configuration of a run, which the UI's launchpad sends, can and cannot change."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage
from tokenuq_pipeline.runtime.launcher import StageLauncher


@pytest.fixture(scope="module", params=[dg.in_process_executor, dg.multiprocess_executor], ids=lambda one: one.name)
def job(request, tmp_path_factory):
    forget_definitions_storage()
    toy = Toy(tmp_path_factory.mktemp("toy"))
    defs = build_defs(toy_config(), toy.store.home, StageLauncher(), request.param)
    return defs.resolve_job_def(STUDY)


@pytest.mark.parametrize(
    "config",
    [
        {"resources": {"launcher": {"config": {"package": "evil"}}}},
        {"resources": {"launcher": {"config": {"termination_timeout": 0}}}},
        {"resources": {"store": {"config": {"home": "/elsewhere"}}}},
        {"resources": {"io_manager": {"config": {"base_dir": "/elsewhere"}}}},
        {"resources": {"other": {"config": {}}}},
        {"execution": {"config": {"marker_to_close": "/elsewhere"}}},
        {"execution": {"config": {"start_method": {"forkserver": {"preload_modules": ["evil"]}}}}},
    ],
    ids=str,
)
def test_packages_modules_and_paths_are_refused(job, config):
    with pytest.raises(dg.DagsterInvalidConfigError, match="unexpected config entry|Undefined"):
        dg.validate_run_config(job, config)


def test_what_the_ui_and_the_commands_send_is_accepted(job):
    for config in ({}, CONSOLE_CONFIG, {"resources": {"store": {}, "launcher": {}}}):
        dg.validate_run_config(job, config)


def test_a_run_with_another_package_does_not_start(tmp_path):
    toy = Toy(tmp_path)
    defs = toy.defs(launcher=StageLauncher(package="fake_entrypoints"))
    with toy.instance() as instance, pytest.raises(dg.DagsterInvalidConfigError):
        instance.create_run_for_job(
            defs.resolve_job_def(STUDY), run_config={"resources": {"launcher": {"config": {"package": "evil"}}}}
        )
