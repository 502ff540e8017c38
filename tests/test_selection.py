"""Selectors and objectives against their written rules."""

import pytest
import torch

from tokenuq_ml import objectives, registry, selection
from tokenuq_ml.quantiles import count_selected
from tokenuq_ml.selection import extreme_quantile, select
from tokenuq_ml.specs import AblationSpec, SelectSpec


@pytest.mark.parametrize(
    ("quantile", "tokens", "expected"),
    [
        (0.25, 100, 25),
        (0.25, 101, 26),
        (0.1, 30, 3),
        (0.3, 10, 3),
        (1.0, 7, 7),
        (0.25, 1, 1),
        (0.25, 0, 0),
        (0.07, 100, 7),
    ],
)
def test_count_is_the_exact_ceiling(quantile, tokens, expected):
    assert count_selected(quantile, tokens) == expected


def test_top_and_bottom_equal_a_plain_sort():
    score = torch.randn(101, generator=torch.Generator().manual_seed(0))
    for keep, ordered in (("top", sorted(score.tolist(), reverse=True)), ("bottom", sorted(score.tolist()))):
        mask = extreme_quantile(score, 0.25, keep)
        assert sorted(score[mask].tolist(), reverse=keep == "top") == ordered[:26]


def test_ties_go_to_the_earlier_token():
    assert extreme_quantile(torch.tensor([1.0, 2.0, 2.0, 2.0]), 0.5).tolist() == [False, True, True, False]
    assert extreme_quantile(torch.zeros(4), 0.5, "bottom").tolist() == [True, True, False, False]


def test_registry_names_what_is_implemented():
    assert set(selection.SELECTORS) == set(registry.SELECTORS)
    assert set(objectives.OBJECTIVES) == set(registry.OBJECTIVES)


def test_all_selects_everything():
    assert select(SelectSpec(by="all"), torch.randn(5)).all()


def test_weights_follow_the_sentence():
    ablation = AblationSpec(name="a", select={"by": "loss", "quantile": 0.5}, rest={"distill": {"weight": 0.3}})
    weights = objectives.token_weights(ablation, torch.tensor([True, False]))
    assert weights.mle_N.tolist() == [1.0, 0.0]
    torch.testing.assert_close(weights.distill_N, torch.tensor([0.0, 0.3]))
    masked = AblationSpec(name="m", select={"by": "loss", "quantile": 0.5})
    assert objectives.token_weights(masked, torch.tensor([True, False])).mle_N.tolist() == [1.0, 0.0]
    assert objectives.distillation(masked) is None and objectives.distillation(ablation).teacher == "baseline"
