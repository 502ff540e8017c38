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


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"kind": "distill", "distill": None}, "kind 'distill' needs key 'distill'"),
        ({"kind": "mle", "distill": {}}, "kind 'mle' takes no key 'distill'"),
    ],
)
def test_only_distillation_has_the_key_distill(objective, said):
    with pytest.raises(ValueError, match=said):
        ablation(MLE, selected=objective)
