"""A synthetic language in the asset graph: it is made before its model and its other world, and gives a truth."""

import dataclasses

from tests.support.tiny_language import LANGUAGE, MODEL, POST, language_spec, model_spec, post_spec
from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.graph import assets_by_name, stage_groups
from tokenuq_pipeline.runtime.store_layout import places_of


def config_of(**study):
    config = toy_config(model=MODEL, dataset=POST, ood=[LANGUAGE], **study)
    return dataclasses.replace(
        config,
        models={**config.models, MODEL: model_spec()},
        datasets={**config.datasets, LANGUAGE: language_spec(), POST: post_spec()},
    )


def test_lineage_runs_from_the_language_to_its_model_and_its_world():
    assets = assets_by_name(config_of())
    language = ("datasets", LANGUAGE)
    assert assets[f"datasets/{POST}"].deps == (language,) == assets[f"models/{MODEL}"].deps
    tokens = assets[f"{STUDY}/tokenized_dataset"]
    assert set(tokens.deps) == {("models", MODEL), ("datasets", POST), language}
    assert tokens.fields["only_ood"] == [LANGUAGE]
    names = list(assets)
    assert names.index(f"datasets/{LANGUAGE}") < names.index(f"datasets/{POST}") < names.index(f"models/{MODEL}")


def test_a_model_from_scratch_has_a_program_of_its_own():
    programs = {group.assets[0].name: group.entrypoint for group in stage_groups(config_of())}
    assert programs[f"models/{MODEL}"] == "pretrain_model" and programs["models/tiny"] == "convert_model"


def test_only_studies_on_a_language_have_the_table_of_the_truth():
    with_truth = assets_by_name(config_of())[f"{STUDY}/tokenized_dataset"]
    without = assets_by_name(toy_config())[f"{STUDY}/tokenized_dataset"]
    assert set(with_truth.outputs) - set(without.outputs) == {"token_truth"} and "token_truth" in TABLES
    # What a manifest may list as an output of this asset.
    assert with_truth.outputs.items() <= places_of(with_truth.name).items()
    assert "only_ood" not in without.fields


def test_knobs_of_the_language_change_its_version_alone():
    one, other = config_of(), config_of()
    other.datasets[LANGUAGE] = language_spec(noise=0.5)
    versions = [{name: asset.code_version for name, asset in assets_by_name(each).items()} for each in (one, other)]
    assert {name for name in versions[0] if versions[0][name] != versions[1][name]} == {f"datasets/{LANGUAGE}"}
