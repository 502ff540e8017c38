"""Weights and gains of tokens, given which are selected."""

import pytest
import torch

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.training.decisions import decide
from tokenuq_ml.training.objectives import token_gain, token_weights
from tokenuq_ml.training.tokens import Tokens

BY_LOSS = {"by": "loss", "quantile": 0.5}
TWO = Tokens(torch.tensor([5.0, 1.0]), torch.tensor([0, 0]))


def test_selected_tokens_are_trained_and_the_rest_distilled_with_its_weight():
    ablation = AblationSpec(name="a", select=BY_LOSS, rest={"distill": {"weight": 0.3}})
    weights = token_weights(ablation, torch.tensor([True, False]), TWO)
    assert weights.mle_N.tolist() == [1.0, 0.0]
    torch.testing.assert_close(weights.distill_N, torch.tensor([0.0, 0.3]))


def test_the_rest_has_no_weight_by_default():
    weights = token_weights(AblationSpec(name="m", select=BY_LOSS), torch.tensor([True, False]), TWO)
    assert weights.mle_N.tolist() == [1.0, 0.0] and weights.distill_N.tolist() == [0.0, 0.0]


def test_an_ablation_without_gain_has_none():
    assert token_gain(AblationSpec(name="m", select=BY_LOSS)) is None


@pytest.mark.parametrize("selected, rest", [("dft", "none"), ("mle", "dft")])
def test_a_gain_applies_only_to_the_tokens_of_its_objective(selected, rest):
    gain = token_gain(AblationSpec(name="m", select=BY_LOSS, selected=selected, rest=rest))
    loss_R, selected_R = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    expected = torch.where(selected_R == (selected == "dft"), torch.exp(-loss_R), 1.0)
    assert all(torch.equal(part_R, expected) for part_R in gain(torch.zeros(2, 3), loss_R, selected_R))


def test_a_mask_decided_before_training_replaces_the_selection():
    tokens = Tokens(torch.tensor([5.0, 1.0]), torch.tensor([0, 0]))
    ablation = AblationSpec(name="m", select=BY_LOSS)
    assert decide(ablation, tokens).selected_N.tolist() == [True, False]
    static = decide(ablation, tokens, torch.tensor([False, True]))
    assert static.selected_N.tolist() == [False, True] and static.weights.mle_N.tolist() == [0.0, 1.0]
