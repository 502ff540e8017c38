"""A study that names estimators of BALD has more assets; others are as they were."""

from dataclasses import replace

import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.truth import LANGUAGE
from tokenuq_pipeline.assets.checks import table_checks
from tokenuq_pipeline.assets.graph import assets_by_name, stage_groups
from tokenuq_pipeline.runtime.store_layout import places_of

ENSEMBLE = {"estimators": ["adapter_ensemble", "laplace"], "members": 3}
OURS = AblationSpec(name="ours", select={"by": "bald_adapter_ensemble", "quantile": 0.25}, rest={"distill": {}})


def assets(config) -> dict:
    return {name.removeprefix(f"{STUDY}/"): asset for name, asset in assets_by_name(config).items()}


def inputs_of(asset) -> dict[str, tuple[str, ...]]:
    return {item.name: item.asset for item in asset.inputs}


def test_the_estimates_read_the_teacher_and_further_teachers():
    made = assets(toy_config(uncertainty=ENSEMBLE))
    members = {f"adapter/teacher_s{seed}": (STUDY, f"teacher_s{seed}", "ensemble_teacher") for seed in (1001, 1002)}
    estimates = made["uncertainty_estimates"]
    assert inputs_of(estimates).items() >= {"adapter": (STUDY, "baseline_teacher"), **members}.items()
    assert set(estimates.deps) == {(STUDY, "tokenized_dataset"), (STUDY, "baseline_teacher"), *members.values()}
    assert estimates.fields["uncertainty"]["estimators"] == ["adapter_ensemble", "laplace"]
    member, teacher = made["teacher_s1001/ensemble_teacher"], made["baseline_teacher"]
    assert {**member.fields, "seed": 1000} == teacher.fields
    assert set(inputs_of(member)) == {"model", "tokenized_dataset"}
    programs = {group.assets[0].stage: group.entrypoint for group in stage_groups(toy_config(uncertainty=ENSEMBLE))}
    assert programs["ensemble_teacher"] == "train_teacher"
    assert programs["uncertainty_estimates"] == "estimate_uncertainty"


def test_nothing_else_of_the_study_changes():
    plain, named = assets(toy_config()), assets(toy_config(uncertainty=ENSEMBLE))
    added = {"teacher_s1001/ensemble_teacher", "teacher_s1002/ensemble_teacher", "uncertainty_estimates"}
    assert set(named) - set(plain) == added
    changed = {name for name in plain if plain[name].code_version != named[name].code_version}
    assert changed == {"ablation_report"}
    assert not set(assets(toy_config(uncertainty={"estimators": ["mc_dropout"]}))) - set(plain)
    checks = [
        {check.key.name for check in table_checks(toy_config(**study))} for study in ({}, {"uncertainty": ENSEMBLE})
    ]
    assert checks[1] - checks[0] == {"estimates_join_one_to_one"}


def test_one_more_member_leaves_the_others_as_they_were():
    few, more = (assets(toy_config(uncertainty={**ENSEMBLE, "members": count})) for count in (3, 4))
    assert set(more) - set(few) == {"teacher_s1003/ensemble_teacher"}
    changed = {name for name in few if few[name].code_version != more[name].code_version}
    assert changed == {"uncertainty_estimates", "ablation_report"}


def test_members_are_trained_at_the_setting_of_the_chosen_candidate():
    made = assets(toy_config(uncertainty=ENSEMBLE, teacher_sweep={"epochs": [1, 2]}))
    member = made["teacher_s1001/ensemble_teacher"]
    assert inputs_of(member)["teacher_candidates"] == (STUDY, "teacher_sweep")
    assert {row: train["epochs"] for row, train in member.fields["candidates"].items()} == {
        "teacher_epochs1": 1,
        "teacher_epochs2": 2,
    }


def test_a_student_that_selects_by_an_estimator_depends_on_it():
    config = toy_config(uncertainty=ENSEMBLE)
    study = config.studies[STUDY].model_copy(update={"ablations": ("mle", "ours")})
    config = replace(config, ablations={**config.ablations, "ours": OURS}, studies={STUDY: study})
    student = assets(config)["ours/student"]
    assert inputs_of(student)["uncertainty_estimates"] == (STUDY, "uncertainty_estimates")
    assert set(student.deps) == {(STUDY, "uncertainty_estimates"), (STUDY, "teacher_hidden")}


@pytest.mark.parametrize("is_known", [True, False])
def test_the_analysis_ranks_the_estimators_where_the_truth_is_known(is_known):
    plain, config = toy_config(), toy_config(uncertainty=ENSEMBLE)
    if is_known:
        plain, config = (
            replace(one, datasets={**one.datasets, "toy": one.datasets["toy"].model_copy(update={"format": LANGUAGE})})
            for one in (plain, config)
        )
    before, after = (assets(one)["uncertainty_analysis"] for one in (plain, config))
    assert ("uncertainty_estimates" in inputs_of(after)) == is_known
    assert (before.code_version != after.code_version) == is_known


def test_outputs_are_where_the_store_looks_for_them():
    made = assets_by_name(toy_config(uncertainty=ENSEMBLE))
    for name in ("uncertainty_estimates", "teacher_s1001/ensemble_teacher"):
        asset = made[f"{STUDY}/{name}"]
        assert asset.outputs == places_of(asset.name)
