"""What stages reserve on a cluster: sizes, what a process of several assets needs, and that no version changes."""

from typing import get_args

import pytest
from pydantic import ValidationError

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config.resources import StageName, StageResources, largest
from tokenuq_ml.stages.versions import REVISIONS
from tokenuq_pipeline.assets.graph import stage_groups


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), (1024, 1024)]
)
def test_a_size_is_bytes(text, size):
    assert StageResources(memory=text).memory == size


@pytest.mark.parametrize("text", ["24", "much", "-3GB", "GB"])
def test_another_text_is_no_size(text):
    with pytest.raises(ValidationError, match="write it like 24GB, 16GiB or 500MB"):
        StageResources(memory=text)


def test_the_stages_of_a_study_are_those_that_have_resources():
    assert set(get_args(StageName)) == set(REVISIONS) - {"models", "datasets", "comparisons", "export"}
    with pytest.raises(ValidationError, match="teacher_losses"):
        toy_config(resources={"teacher_losses": {"num_gpus": 1}})


def test_a_process_of_several_assets_reserves_the_most_that_one_needs():
    both = [StageResources(num_gpus=1, memory="1GB", custom={"a": 1}), StageResources(num_cpus=2, memory="3GB")]
    assert largest(both) == StageResources(num_cpus=2, num_gpus=1, memory="3GB", custom={"a": 1})
    assert largest([]) == StageResources()


def test_resources_reach_the_process_and_change_no_version():
    given = {"student": {"num_gpus": 1}, "token_losses": {"memory": "2GB"}, "token_uncertainty": {"num_cpus": 4}}
    plain, reserved = stage_groups(toy_config()), stage_groups(toy_config(resources=given))
    versions = [[asset.code_version for group in groups for asset in group.assets] for groups in (plain, reserved)]
    assert versions[0] == versions[1]
    found = {group.op: group.resources for group in reserved if group.resources != StageResources()}
    assert found == {
        f"{STUDY}__measure": StageResources(num_cpus=4, memory="2GB"),
        f"{STUDY}__mle__student": StageResources(num_gpus=1),
        f"{STUDY}__top__student": StageResources(num_gpus=1),
    }
