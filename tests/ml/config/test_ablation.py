"""What an ablation selects, needs and distils follows from its entry, and a contradictory entry is refused."""

import pytest

from tokenuq_ml.config import AblationSpec

MLE = {"select": "all"}
PAPER = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {"teacher": "baseline"}}}
STATIC = {"select": {"by": "bald", "quantile": 0.5, "scope": "dataset"}, "selected": "dft"}
FROM_BASE = {"select": "all", "selected": {"distill": {"teacher": "base", "divergence": "reverse_kl"}}}


def ablation(entry: dict, **changes) -> AblationSpec:
    return AblationSpec(name="a", **{**entry, **changes})


@pytest.mark.parametrize(
    ("entry", "kind", "partial", "before_training", "student_losses"),
    [
        (MLE, "all", False, False, False),
        (PAPER, "dynamic", True, False, True),
        (STATIC, "static", True, True, False),
        ({"select": {"by": "loss", "quantile": 1.0}}, "dynamic", False, False, True),
        ({"select": {"by": "loss", "scope": "dataset", "quantile": 0.1}}, "static", True, True, False),
        ({"select": {"by": "all", "scope": "dataset"}}, "all", False, False, False),
        ({"select": {"by": "entropy", "keep": "above", "threshold": 1.0}}, "static", True, False, False),
    ],
)
def test_selection_follows_from_the_entry(entry, kind, partial, before_training, student_losses):
    spec = ablation(entry)
    assert spec.selection_kind == kind
    assert spec.select.is_partial == partial
    assert spec.select.is_decided_before_training == before_training
    assert spec.needs_student_losses == student_losses


@pytest.mark.parametrize(
    ("entry", "teacher", "mean_embeddings"),
    [
        (MLE, None, False),
        (PAPER, "baseline", True),
        ({**PAPER, "selected": "eaft"}, "baseline", False),
        ({**PAPER, "rest": {"distill": {"temperature": 2.0}}}, "baseline", False),
        (FROM_BASE, "base", False),
    ],
)
def test_distillation_follows_from_the_entry(entry, teacher, mean_embeddings):
    spec = ablation(entry)
    assert spec.distils_from == teacher
    assert (spec.distillation is None) == (teacher is None)
    assert spec.can_use_mean_embeddings == mean_embeddings


def test_a_static_selection_reads_the_teachers_losses_and_its_score():
    spec = ablation(STATIC)
    assert spec.columns_read == ("bald", "teacher_loss")
    assert spec.tables_read == ("token_uncertainty", "token_losses")


def test_an_ablation_that_reads_a_divergence_names_its_teacher():
    with pytest.raises(ValueError, match="reads the divergence to a teacher and distils none"):
        ablation({"select": {"by": "divergence", "quantile": 0.2}})
    spec = ablation({"select": {"by": "divergence", "quantile": 0.2}, "rest": {"distill": {"weight": 0}}})
    assert spec.distils_from == "baseline" and spec.student_columns_read == ("student_divergence",)


def test_both_parts_distil_from_the_same_tokens_of_the_teacher():
    with pytest.raises(ValueError, match="distil with different top_k"):
        ablation(PAPER, selected={"distill": {"top_k": 4}})


@pytest.mark.parametrize("by", ["excess_loss", "probability", "retrospective_loss", "student_entropy", "random"])
def test_a_score_of_the_student_cannot_select_before_training(by):
    with pytest.raises(ValueError, match=f"{by!r} changes at each step"):
        ablation({"select": {"by": by, "quantile": 0.2, "scope": "dataset"}})


def test_objectives_read_columns_and_losses():
    weighed = ablation(MLE, selected="iw_sft")
    assert weighed.columns_read == ("base_loss",) and weighed.tables_read == ("token_losses",)
    assert weighed.needs_student_losses and not weighed.weighs_by_batch and not weighed.decides_together(False)
    split = ablation(MLE, selected={"epistemic_share": {}, "distill": {}})
    assert split.columns_read == ("bald", "expected_entropy") and split.can_use_mean_embeddings
    assert not split.needs_student_losses and split.decides_together(False)
    assert ablation(MLE, selected="talr").needs_student_losses and ablation(MLE, selected="talr").weighs_by_batch
