"""What a study on a synthetic language has in addition: the truth among inputs, snapshots, an asset, a ranking."""

from dataclasses import replace

import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.truth import LANGUAGE
from tokenuq_pipeline.assets.graph import assets_by_name, stage_groups
from tokenuq_pipeline.runtime.store_layout import places_of

ORACLES = {
    "oracle": {"by": "oracle_kl", "quantile": 0.25},
    "student": {"by": "oracle_kl_student", "quantile": 0.25},
    "chance": {"by": "oracle_entropy", "quantile": 0.25},
}


def language_config(*of_language: str, **study):
    """The toy study, in which some of the datasets are of a synthetic language."""
    config = toy_config(**study)
    datasets = {
        name: spec.model_copy(update={"format": LANGUAGE}) if name in of_language else spec
        for name, spec in config.datasets.items()
    }
    ablations = {name: AblationSpec(name=name, select=select) for name, select in ORACLES.items()}
    return replace(config, datasets=datasets, ablations={**config.ablations, **ablations})


def assets(config) -> dict:
    return {name.removeprefix(f"{STUDY}/"): asset for name, asset in assets_by_name(config).items()}


def inputs_of(asset) -> dict[str, tuple[str, ...]]:
    return {item.name: item.asset for item in asset.inputs}


@pytest.mark.parametrize("of_language", [("toy",), ("extra",), ("toy", "extra")])
def test_evaluations_and_the_analysis_read_the_truth(of_language):
    made = assets(language_config(*of_language))
    for name in ("mle/evaluation", "reference_evaluation", "uncertainty_analysis", "true_divergence"):
        assert inputs_of(made[name])["token_truth"] == (STUDY, "tokenized_dataset"), name
    analysis = made["uncertainty_analysis"]
    assert inputs_of(analysis)["true_divergence_over_training"] == (STUDY, "true_divergence")
    assert set(analysis.tables) == {"uncertainty_analysis", "truth_ranking"}
    assert "token_truth" not in inputs_of(made["top/student"])


def test_the_teacher_is_measured_at_shares_of_its_training():
    made = assets(language_config("toy"))
    teacher, divergence = made["baseline_teacher"], made["true_divergence"]
    assert teacher.fields["fractions"] == divergence.fields["fractions"] == [0.0, 0.25, 0.5, 1.0]
    assert divergence.inputs[-2].path == teacher.outputs["snapshots"]
    assert inputs_of(divergence)["snapshots"] == inputs_of(divergence)["training_log"] == (STUDY, "baseline_teacher")
    (group,) = (group for group in stage_groups(language_config("toy")) if group.entrypoint == "measure_truth")
    assert [asset.stage for asset in group.assets] == ["true_divergence"]


def test_other_studies_are_as_they_were():
    plain, language = assets(toy_config()), assets(language_config("toy"))
    assert set(language) - set(plain) == {"true_divergence"}
    assert not [name for name, asset in plain.items() if "token_truth" in inputs_of(asset)]
    changed = {name for name in plain if plain[name].code_version != language[name].code_version}
    assert changed == {"baseline_teacher", "datasets/toy"}
    assert "snapshots" not in plain["baseline_teacher"].outputs


@pytest.mark.parametrize(
    ("ablation", "reads"),
    [
        ("oracle", {"true_divergence": (STUDY, "true_divergence")}),
        ("student", {"token_truth": (STUDY, "tokenized_dataset")}),
        ("chance", {"token_truth": (STUDY, "tokenized_dataset")}),
    ],
)
def test_ablations_that_select_by_the_truth_depend_on_it(ablation, reads):
    student = assets(language_config("toy", ablations=["mle", ablation]))[f"{ablation}/student"]
    assert inputs_of(student).items() >= reads.items()
    assert set(reads.values()) <= set(student.reads)


def test_a_teacher_taken_from_candidates_brings_its_snapshots():
    config = language_config("toy", teacher_sweep={"epochs": [1, 2]})
    made = assets(config)
    teacher = made["baseline_teacher"]
    for row in config.studies[STUDY].teacher_candidates:
        candidate = made[f"{row}/candidate_teacher"]
        assert candidate.fields["fractions"] == teacher.fields["fractions"]
        taken = {item.name: item.path for item in teacher.inputs}
        assert taken[f"snapshots/{row}"] == candidate.outputs["snapshots"]
    assert "snapshots" in teacher.outputs


def test_all_outputs_are_places_of_the_store():
    """What is not would be neither verified nor pruned."""
    config = language_config("toy", teacher_sweep={"epochs": [1, 2]}, ablations=["mle", *ORACLES])
    for asset in assets_by_name(config).values():
        places = places_of(asset.name)
        assert asset.outputs.items() <= places.items(), asset.name


def test_edges_of_the_truth_are_drawn_through_what_is_measured_with_it():
    made = assets(language_config("toy", ablations=["mle", "oracle"]))
    assert made["uncertainty_analysis"].deps == tuple(
        (STUDY, stage) for stage in ("token_losses", "token_uncertainty", "true_divergence")
    )
    assert set(made["true_divergence"].deps) == {(STUDY, "tokenized_dataset"), (STUDY, "baseline_teacher")}
    assert (STUDY, "true_divergence") in made["oracle/student"].deps
