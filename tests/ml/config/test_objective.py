"""Objectives in every form: names, settings and sums. Wrong ones are refused, and defaults leave no trace."""

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.config import ObjectiveSpec, registry
from tokenuq_ml.config.load import load_config

BASE = {"teacher": "base", "weight": 0.1}


@pytest.mark.parametrize(
    ("given", "kind", "settings", "label", "trains"),
    [
        ("mle", "mle", {}, "mle", True),
        ({"focal": {"gamma": 1}}, "focal", {"gamma": 1.0}, "focal", True),
        ({"focal": {"gamma": 2}}, "focal", {}, "focal", True),
        ({"talr": None}, "talr", {}, "talr", True),
        ({"distill": None}, "distill", {}, "distill", True),
        ({"distill": {"weight": 0}}, "distill", {}, "distill", False),
        ({"dft": {}, "distill": BASE}, "dft", {}, "dft+distill", True),
        ({"mle": {"weight": 0.5}, "distill": {"weight": 0}}, "mle", {"weight": 0.5}, "mle+distill", True),
        ("none", "none", {}, "none", False),
    ],
)
def test_every_form_gives_kind_settings_and_sum(given, kind, settings, label, trains):
    spec = ObjectiveSpec.model_validate(given)
    assert (spec.kind, spec.settings, spec.label, spec.trains) == (kind, settings, label, trains)
    assert spec.is_sum == ("+" in label)
    assert ObjectiveSpec.model_validate(spec.fields()) == spec


def test_settings_have_their_default():
    spec = ObjectiveSpec.model_validate({"focal": {"weight": 0.5}})
    assert (spec.setting("gamma"), spec.setting("weight")) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "distill", "distill": None}, "kind 'distill' needs key 'distill'"),
        ({"dft": {}, "mle": {}}, "'dft' and 'mle': a sum has one objective with the label and 'distill'"),
        ({"none": {}, "distill": {}}, "'none' does not train the tokens; remove it, or remove 'distill'"),
        ({"math:sqrt": {}, "distill": {}}, "no module 'math'"),
        ({"tokenuq_ml.seeding:generator_states": {}, "distill": {}}, "have no sum: let the function return Weights"),
        ({"talr": "x"}, "'talr': settings are a mapping, as in {talr: {floor: 1}}, not 'x'"),
        ({"mle": {}, "distill": 0.1}, "'distill': settings are a mapping, as in {distill: {weight: 1}}, not 0.1"),
        ("label_trust", "'label_trust' divides each token .*; add the key 'distill'"),
        ({"focal": {"gama": 1}}, "'focal' has no setting 'gama'; allowed: gamma, weight"),
        ({"none": {"weight": 1}}, "'none' has no setting 'weight'; allowed: none"),
        ({"talr": {"floor": 2}}, r"'floor' of 'talr' must be in \[0, 1\], got 2"),
        ({"mle": {"weight": float("inf")}}, "'weight' of 'mle' must be in"),
        ({"mle": {"weight": -1}}, "'weight' of 'mle' must be in"),
        ({"likelihood": {}}, "unknown objective 'likelihood'"),
        ({"distill": {"top_k": 3, "divergence": "reverse_kl"}}, "the reverse KL is infinite; use"),
        ({"distill": {"top_k": 0}}, "greater than 0"),
        ({}, "Field required"),
    ],
)
def test_a_wrong_objective_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ObjectiveSpec.model_validate(given)


def test_the_fields_of_earlier_entries_have_no_new_key():
    """Code versions of students follow from the fields."""
    assert ObjectiveSpec(kind="mle").fields() == {"kind": "mle", "distill": None}
    distil = {"teacher": "baseline", "divergence": "forward_kl", "temperature": 1.0, "weight": 1.0}
    paper = load_config(ROOT / "config").ablations["paper_top25"]
    assert paper.fields()["rest"] == {"kind": "distill", "distill": distil}
    capped = ObjectiveSpec.model_validate({"distill": {"top_k": 8}})
    assert capped.fields()["distill"] == {**distil, "top_k": 8}
    assert not capped.distill.is_linear_in_teacher


def test_settings_are_within_their_own_limits():
    for name, objective in registry.OBJECTIVES.items():
        for setting in objective.settings.values():
            assert setting.low <= setting.default <= setting.high, name
