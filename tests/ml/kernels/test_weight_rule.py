"""A decision is the rule that returns it, and can be cut into the parts of micro-batches."""

import torch

from tokenuq_ml.kernels.weight_rule import BatchDecision, Weights


def test_a_decision_is_the_rule_that_returns_it_whatever_the_losses():
    decision = BatchDecision.of_weights(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5]))
    assert not decision.needs_losses
    assert decision.decide(torch.tensor([7.0, 8.0])) is decision
    assert decision.selected_N.tolist() == [True, False]


def test_a_part_of_a_decision_has_the_weights_and_mask_of_its_rows():
    weights = Weights(torch.arange(5.0), 10 + torch.arange(5.0))
    part = BatchDecision(weights, torch.tensor([True, False, True, True, False])).part(slice(1, 4), "cpu")
    assert part.weights.mle_N.tolist() == [1, 2, 3] and part.weights.distill_N.tolist() == [11, 12, 13]
    assert part.selected_N.tolist() == [False, True, True]
