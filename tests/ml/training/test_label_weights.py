"""How much each token's losses count, by hand and against autograd in plain PyTorch."""

import math

import pytest
import torch

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.training.decisions import SelectionRule, decide
from tokenuq_ml.training.objectives import token_gain
from tokenuq_ml.training.tokens import Tokens, join

N, D, V = 9, 6, 17
EXAMPLE_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HEAD, HIDDEN, TEACHER = Head(draw(V, D)), draw(N, D, seed=1), draw(N, D, seed=2)
LABEL = torch.arange(N)
COLUMNS = {
    "base_loss": draw(N, seed=3).abs(),
    "bald": draw(N, seed=4).abs() / 10,
    "expected_entropy": draw(N, seed=5).abs(),
    "mc_loss": draw(N, seed=6).abs() * 5,
}


def losses(hidden):
    """Cross-entropy and forward KL of each token, from full logits."""
    logp, logq = ((states @ HEAD.weight_VD.T).log_softmax(-1) for states in (hidden, TEACHER))
    return -logp.gather(1, LABEL[:, None])[:, 0], (logq.exp() * (logq - logp)).sum(1)


def example_means(values):
    return torch.stack([values[EXAMPLE_N == example].mean() for example in range(3)])


def talr(ce, c):
    temperature = example_means(ce).sort().values[1]
    return torch.clamp(torch.exp(-ce) ** (1 / temperature), min=0.01), 0.0


def iw_sft(ce, c):
    ratio = [torch.exp((c["base_loss"] - ce)[EXAMPLE_N == example].mean()) for example in range(3)]
    return torch.stack(ratio).clamp(max=1.2)[EXAMPLE_N], 0.0


def epistemic(ce, c):
    b, a = c["bald"], c["expected_entropy"]
    share = b / (b + a * b.sum() / a.sum())
    return share, 0.5 * (1 - share)


def trust(ce, c):
    q = torch.exp(-c["mc_loss"])
    return q / (q + 0.05), 1 - q / (q + 0.05)


CASES = {
    "mle": ("mle", lambda ce, c: (1.0, 0.0)),
    "dft + base KL": ({"dft": {}, "distill": {"weight": 0.1}}, lambda ce, c: (torch.exp(-ce), 0.1)),
    "half + KL": ({"mle": {"weight": 0.5}, "distill": {}}, lambda ce, c: (0.5, 1.0)),
    "power": ({"power": {"exponent": 3}}, lambda ce, c: (torch.exp(-3 * ce), 0.0)),
    "talr": ("talr", talr),
    "iw_sft": ({"iw_sft": {"clip": 1.2}}, iw_sft),
    # At step 3 of 5, half of the way.
    "forget": ({"forget": {"weight": 0.3}}, lambda ce, c: (-0.15, 0.0)),
    "epistemic_share": ({"epistemic_share": {}, "distill": {"weight": 0.5}}, epistemic),
    "label_trust": ({"label_trust": {"noise": 0.05}, "distill": {}}, trust),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradient_equal_plain_pytorch(name):
    given, weights = CASES[name]
    ablation = AblationSpec(name="a", select="all", selected=given)
    theirs, ours = HIDDEN.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    ce, kl = losses(theirs)
    mle, distill = weights(ce.detach(), COLUMNS)
    expected = (mle * ce + distill * kl).sum()
    expected.backward()
    columns = {key: COLUMNS[key] for key in ablation.columns_read}
    tokens = lambda loss_N: Tokens(loss_N, EXAMPLE_N, ("a", "b", "c"), columns, step=3, steps=5)  # noqa: E731
    term = TeacherTerm(TeacherStates(TEACHER)) if ablation.distillation else None
    out = training_loss(
        ours, HEAD, LABEL, SelectionRule(ablation, tokens), teacher=term, gain=token_gain(ablation), every_loss=True
    )
    out.total.backward()
    # Weights are float32.
    torch.testing.assert_close(out.total, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_an_objective_of_the_rest_has_its_own_settings():
    ablation = AblationSpec(
        name="a",
        select={"by": "loss", "quantile": 0.5},
        selected={"mle": {"weight": 2}},
        rest={"forget": {"weight": 0.4}},
    )
    decision = decide(ablation, Tokens(torch.tensor([3.0, 1.0]), torch.zeros(2, dtype=torch.long), step=2, steps=2))
    torch.testing.assert_close(decision.weights.mle_N, torch.tensor([2.0, -0.4]))
    # Nothing is forgotten at the first step, when no token has been judged wrongly learnt.
    first = decide(ablation, Tokens(torch.tensor([3.0, 1.0]), torch.zeros(2, dtype=torch.long), step=1, steps=2))
    assert first.weights.mle_N.tolist() == [2.0, 0.0]


def test_the_epistemic_share_does_not_depend_on_the_scale_of_bald():
    """It follows the dropout rate, which is a choice; the mean token has one half."""
    ablation = AblationSpec(name="a", select="all", selected={"epistemic_share": {}, "distill": {}})
    shares = []
    for scale in (1.0, 0.01):
        columns = {"bald": scale * torch.tensor([0.0, 0.3, 0.1]), "expected_entropy": torch.tensor([1.0, 0.5, 0.5])}
        shares.append(decide(ablation, Tokens(torch.zeros(3), torch.zeros(3).long(), columns=columns)).weights)
    torch.testing.assert_close(shares[0].mle_N, shares[1].mle_N)
    assert shares[0].mle_N[0] == 0 and shares[0].distill_N[0] == 1
    even = {"bald": torch.full((3,), 0.2), "expected_entropy": torch.full((3,), 0.7)}
    weights = decide(ablation, Tokens(torch.zeros(3), torch.zeros(3).long(), columns=even)).weights
    torch.testing.assert_close(weights.mle_N, torch.full((3,), 0.5))


@pytest.mark.parametrize("kind", ["epistemic_share", "label_trust"])
def test_a_token_without_uncertainty_has_finite_weights(kind):
    ablation = AblationSpec(name="a", select="all", selected={kind: {}, "distill": {}})
    columns = {"bald": torch.zeros(2), "expected_entropy": torch.zeros(2), "mc_loss": torch.tensor([0.0, 1e4])}
    weights = decide(ablation, Tokens(torch.zeros(2), torch.zeros(2).long(), columns=columns)).weights
    assert all(weight_N.isfinite().all() for weight_N in weights)
    torch.testing.assert_close(weights.mle_N + weights.distill_N, torch.ones(2))


def test_talr_weighs_by_the_complete_batch_and_iw_sft_by_the_example():
    """Micro-batches are decided together, or each example alone gives what they give together."""
    parts = [
        Tokens(torch.tensor([1.0, 2.0]), torch.zeros(2).long(), ("a",), {"base_loss": torch.tensor([2.0, 2.0])}),
        Tokens(torch.tensor([8.0]), torch.zeros(1).long(), ("b",), {"base_loss": torch.tensor([8.5])}),
    ]
    for kind, alone in (("talr", False), ("iw_sft", True)):
        ablation = AblationSpec(name="a", select="all", selected=kind)
        together = decide(ablation, join(parts)).weights.mle_N
        apart = torch.cat([decide(ablation, part).weights.mle_N for part in parts])
        assert torch.allclose(together, apart) == alone == (not ablation.decides_together(False))
    assert together.tolist() == pytest.approx([math.exp(0.5), math.exp(0.5), math.exp(0.5)])
