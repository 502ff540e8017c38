"""Estimators of BALD that a study names: their columns, what else the study then has, and what is refused."""

import copy

import pytest
import yaml
from pydantic import ValidationError

from tests.support.tiny_study import CONFIG, STUDY
from tokenuq_ml.config import StudySpec, UncertaintySpec
from tokenuq_ml.config.estimators import ESTIMATORS, LAPLACE_ESTIMATORS, column_of, posterior_bytes, too_large
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import REVISIONS, study_fields
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS


def load(folder, added=None, **study):
    """Load the tiny study with other keys."""
    config = copy.deepcopy(CONFIG)
    config["studies"][STUDY].update(study)
    config["ablations"].update(added or {})
    (folder / "llama").mkdir()
    for kind, entries in config.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def test_every_estimator_has_a_column():
    assert list(BALD_COLUMNS) == [column_of(name) for name in ESTIMATORS]


@pytest.mark.parametrize(
    ("uncertainty", "said"),
    [
        ({"estimators": ["ensemble"]}, "unknown estimator 'ensemble'; allowed: mc_dropout, mc_dropout_5"),
        ({"estimators": ["laplace", "laplace"]}, "names an estimator twice"),
        ({"estimators": ["laplace"], "members": 3}, "'members' is the size of 'adapter_ensemble'"),
        ({"estimators": ["adapter_ensemble"], "members": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_values_are_refused(uncertainty, said):
    with pytest.raises(ValidationError, match=said):
        UncertaintySpec(**uncertainty)


def test_an_ablation_by_an_estimator_that_is_not_measured_is_refused(tmp_path):
    added = {"ours": {"select": {"by": "bald_adapter_ensemble", "quantile": 0.25}}}
    with pytest.raises(InputError, match="'ours' reads 'bald_adapter_ensemble'.*add 'adapter_ensemble'"):
        load(tmp_path, added, ablations=["mle", "ours"])


def test_a_member_that_is_named_like_an_ablation_is_refused(tmp_path):
    uncertainty = {"estimators": ["adapter_ensemble"], "members": 2}
    added = {"teacher_s1001": {"select": "all"}}
    with pytest.raises(InputError, match="the teacher 'teacher_s1001', which is another row"):
        load(tmp_path, added, uncertainty=uncertainty, ablations=["mle", "teacher_s1001"])


def test_members_are_the_teacher_and_further_seeds(tmp_path):
    uncertainty = {"estimators": ["adapter_ensemble"], "members": 3}
    study = load(tmp_path, uncertainty=uncertainty, teacher_seed=7).studies[STUDY]
    assert study.ensemble_teachers == {"teacher_s8": 8, "teacher_s9": 9}
    assert not StudySpec(**{**study.fields(), "uncertainty": {"estimators": ["laplace"]}}).ensemble_teachers


def test_estimators_change_no_version_of_other_measurements(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    plain, named = load(tmp_path / "a"), load(tmp_path / "b", uncertainty={**_OWN, "estimators": ["laplace_diag"]})
    stages = set(REVISIONS) - {"models", "datasets", "student", "curriculum", "evaluation"} - _OF_SOME
    for stage in stages - {"ablation_report"}:
        fields = [study_fields(config, config.studies[STUDY], stage) for config in (plain, named)]
        assert fields[0] == fields[1], stage


_OWN = CONFIG["studies"][STUDY]["uncertainty"]
_OF_SOME = {
    "comparisons",
    "export",
    "candidate_teacher",
    "teacher_sweep",
    "ensemble_teacher",
    "true_divergence",
    "uncertainty_estimates",
}


def test_order_of_names_and_the_own_rate_are_no_part_of_the_version():
    one = UncertaintySpec(estimators=["laplace", "mc_dropout_5"], dropout=0.1)
    other = UncertaintySpec(estimators=["mc_dropout_5", "mc_dropout", "laplace"], dropout=0.3)
    assert one.estimator_fields() == other.estimator_fields()
    assert one.measured == ("mc_dropout_5", "laplace") and not UncertaintySpec(estimators=["mc_dropout"]).measured
    assert UncertaintySpec(**one.estimator_fields()).measured == one.measured


def test_a_posterior_takes_memory_by_its_largest_factor():
    grown = {
        name: posterior_bytes(name, 10_000, 8, 2) / posterior_bytes(name, 1000, 8, 2) for name in LAPLACE_ESTIMATORS
    }
    assert 90 < grown["laplace"] <= 100 and grown["laplace_diag"] == pytest.approx(10)
    assert too_large("laplace", 300, 96, 10) is None
    assert "49,152 x 576, more than the limit of 2.1 GB" in too_large("laplace", 49_152, 576, 10)
