"""A mix in the graph: its datasets are its inputs, and they are made before it."""

from dataclasses import replace

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import DatasetSpec
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.automation.jobs import root_asset_keys


def mixed_config():
    sizes = {"train": 3, "validation": 1, "test": 1}
    mixed = DatasetSpec(name="mixed", format="mix", mix={"toy": 0.5, "other": 0.5}, sizes=sizes)
    other = DatasetSpec(name="other", format="reasoning_gym", task="x", sizes=sizes)
    config = toy_config(dataset="mixed")
    # The mix first: the order of entries must not matter.
    return replace(config, datasets={"mixed": mixed, **config.datasets, "other": other})


def test_a_mix_depends_on_its_datasets():
    config = mixed_config()
    assets = assets_by_name(config)
    mixed = assets["datasets/mixed"]
    assert mixed.deps == (("datasets", "other"), ("datasets", "toy"))
    assert [item.name for item in mixed.inputs] == ["examples/other", "examples/toy"]
    names = list(assets)
    assert names.index("datasets/other") < names.index("datasets/mixed") > names.index("datasets/toy")


def test_a_study_on_a_mix_needs_the_datasets_of_the_mix():
    config = mixed_config()
    assert config.datasets_of(config.studies[STUDY]) == ["other", "toy", "mixed", "extra"]
    keys = {key.to_user_string() for key in root_asset_keys(config, config.studies[STUDY])}
    assert {"datasets/other", "datasets/toy", "datasets/mixed"} <= keys


def test_a_weight_changes_the_version_of_the_mix_alone():
    config = mixed_config()
    changed = replace(
        config,
        datasets={**config.datasets, "mixed": config.datasets["mixed"].model_copy(update={"mix": {"toy": 1.0}})},
    )
    before, after = assets_by_name(config), assets_by_name(changed)
    differ = {name for name in before if before[name].code_version != after[name].code_version}
    assert differ == {"datasets/mixed"}
