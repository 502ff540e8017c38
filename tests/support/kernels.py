"""Random heads, states and decisions for tests of the kernels, and the same computations in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.weight_rule import BatchDecision

N, D, V = 13, 8, 31
"""Tokens, hidden size and vocabulary."""

HEADS = [{}, {"softcap": 5.0}, {"bias": True}, {"softcap": 3.0, "scale": 0.5, "bias": True}]
LINEAR_HEADS = [{}, {"bias": True}, {"scale": 0.5, "bias": True}]
"""Arguments of `random_inputs`; linear heads do not soft-cap."""


def random_inputs(dtype=torch.float64, softcap=None, bias=False, scale=1.0, rows=N, magnitude=1.0):
    """Return a head, the student's states, labels and the teacher's states; labels include the first and last id."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    head = Head(draw(V, D).to(dtype), draw(V).to(dtype) if bias else None, softcap=softcap, scale=scale)
    labels = torch.randint(0, V, (rows,), generator=generator)
    if rows > 1:
        labels[0], labels[1] = 0, V - 1
    return head, (draw(rows, D) * magnitude).to(dtype), labels, draw(rows, D).to(dtype)


def full_logits(head, hidden):
    """Return the logits of all tokens at once."""
    logits = hidden @ head.weight_VD.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def plain_divergence(name, logits, teacher, temperature):
    """Return the divergence of each token from full logits."""
    logp, logq = (torch.log_softmax(z / temperature, -1) for z in (logits, teacher))
    kl = lambda a, b: torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1)  # noqa: E731
    if name == "forward_kl":
        # Trap 9: the full KL, not its cross-entropy form, so that equal distributions give 0.
        return kl(logq, logp)
    if name == "reverse_kl":
        return kl(logp, logq)
    mean = ((logp.exp() + logq.exp()) / 2).log()
    return (kl(logp, mean) + kl(logq, mean)) / 2


def plain_loss(head, hidden, labels, decision, teacher, name="forward_kl", temperature=1.0):
    """Return the training loss, and cross-entropy and divergence of each token, from full logits."""
    logits, weights = full_logits(head, hidden), decision.weights
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    divergence = plain_divergence(name, logits, full_logits(head, teacher).detach(), temperature)
    return (weights.mle_N * ce + weights.distill_N * divergence).sum(), ce.detach(), divergence.detach()


def train_all(rows=N):
    """Return the decision to train every token by cross-entropy."""
    return BatchDecision.of_weights(torch.ones(rows), torch.zeros(rows))


def distil_all(rows=N):
    """Return the decision to distil every token."""
    return BatchDecision.of_weights(torch.zeros(rows), torch.ones(rows))


def third_each():
    """Return the decision to train a third of the tokens, distil a third with weight 0.7, and leave out the rest."""
    third = torch.arange(N) % 3
    return BatchDecision.of_weights((third == 0).double(), (third == 1).double() * 0.7)


@dataclass(frozen=True)
class RuleFromLosses:
    """A `WeightRule` that needs the losses and calls a function with them."""

    function: Callable[[Tensor], BatchDecision]

    @property
    def needs_losses(self) -> bool:
        """True."""
        return True

    def decide(self, loss_N: Tensor) -> BatchDecision:
        """Return what the function returns."""
        return self.function(loss_N)


TRAIN_HALF_DISTIL_HALF = RuleFromLosses(
    lambda loss_N: BatchDecision.of_weights((loss_N >= loss_N.median()).double(), (loss_N < loss_N.median()).double())
)


def head_products(monkeypatch, run) -> float:
    """Return the head products per token of N that `run` computes, forward and backward."""
    rows = []
    for name in ("product", "hidden_gradient"):
        original = getattr(Head, name)
        counted = lambda self, x, original=original: rows.append(len(x)) or original(self, x)  # noqa: E731
        monkeypatch.setattr(Head, name, counted)
    run()
    return sum(rows) / N
