"""Which model of a study the outputs of each other model are compared with."""

import pytest

from tokenuq_ml.config import AblationSpec, EvaluationSpec
from tokenuq_ml.config.pairwise import compared_with


def ablations(*names: tuple[str, int], **train: dict) -> dict[str, AblationSpec]:
    return {name: AblationSpec(name=name, select="all", seed=seed, train=train.get(name, {})) for name, seed in names}


TWO_SEEDS = ablations(("mle", 0), ("mle_s1", 1), ("top", 0), ("top_s1", 1))


def test_a_name_without_seed_is_compared_seed_by_seed():
    found = compared_with("mle", TWO_SEEDS)
    assert found == {"mle": None, "mle_s1": None, "top": "mle", "top_s1": "mle_s1"}


def test_a_single_ablation_is_compared_with_all_others():
    assert compared_with("mle_s1", TWO_SEEDS) == {"mle": "mle_s1", "mle_s1": None, "top": "mle_s1", "top_s1": "mle_s1"}
    assert compared_with("mle_s0", TWO_SEEDS) == {"mle": None, "mle_s1": "mle", "top": "mle", "top_s1": "mle"}
    one_seed = ablations(("mle", 0), ("top", 0), ("top_s1", 1))
    assert compared_with("mle", one_seed) == {"mle": None, "top": "mle", "top_s1": "mle"}


@pytest.mark.parametrize("row", ["base", "teacher"])
def test_base_and_teacher_are_compared_with_every_ablation(row):
    assert set(compared_with(row, TWO_SEEDS).values()) == {row}


def test_what_cannot_be_compared_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="'nme' is no model of the study; allowed: base, teacher, mle, mle_s1, top"):
        compared_with("nme", TWO_SEEDS)
    three = ablations(("mle", 0), ("mle_s1", 1), ("top", 0), ("top_s2", 2))
    with pytest.raises(ValueError, match="'mle' has the seeds 0, 1, and 'top_s2' has seed 2; give both the same seeds"):
        compared_with("mle", three)
    rates = {"mle_lr0p001": {"learning_rate": 1e-3}, "mle_lr0p0001": {"learning_rate": 1e-4}}
    swept = ablations(*((name, 0) for name in rates), ("top", 0), **rates)
    with pytest.raises(ValueError, match="'mle' has several settings; name one: mle_lr0p0001, mle_lr0p001"):
        compared_with("mle", swept)


def test_a_study_without_the_comparison_keeps_its_version():
    assert not {"pairwise", "lm_eval", "ifbench"} & EvaluationSpec().fields().keys()
