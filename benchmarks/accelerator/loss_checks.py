"""The training loss against float64: every term, divergence, head, gain and statistic, values and gradients.

Shapes: N response tokens, D hidden size, V vocabulary, R of the N reduced at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accelerator import references, specs
from benchmarks.accelerator.head_kernels import decided_by
from benchmarks.accelerator.references import Case, relative_error
from tokenuq_ml.kernels import label_factors
from tokenuq_ml.kernels.label_factors import Factor
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TeacherTerm, TrainingLoss, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision

Scale = Callable[[Tensor, Tensor], Tensor]
"""From logits `[N, V]` and losses `[N]` to the factor of each token's loss, with its gradient if it has one."""


@dataclass(frozen=True)
class LossCheck:
    """A use of `training_loss`."""

    decision: Callable[[torch.device], BatchDecision]
    head: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Case.draw`."""
    divergence: str = "forward_kl"
    temperature: float = 1.0
    top_k: int | None = None
    means: bool = False
    """The teacher is given by mean embeddings."""
    by_loss: bool = False
    """The rule needs the losses: the paper's, which trains those with the highest and distils the others."""
    trains_head: bool = False
    factor: Callable[[Tensor, Tensor], Factor] | None = None
    """What the kernel multiplies the cross-entropy by."""
    scale: Scale | None = None
    """The same factor in plain PyTorch."""

    def errors(self, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """Return the relative error of each result."""
        case = Case.draw(device, dtype, **self.head)
        out, leaves = self._ours(case)
        expected = self._exact(case.exact(), out)
        grads = zip(leaves, expected.pop("gradients"), strict=True)
        names = ("gradient", "gradient of weight", "gradient of bias")
        found = {name: relative_error(leaf.grad, grad) for name, (leaf, grad) in zip(names, grads, strict=False)}
        # Without a rule that needs them, losses are defined for the tokens that have a weight for them.
        defined = torch.ones_like(out.selected_N) if self.by_loss else out.weights.mle_N != 0
        loss_N = torch.where(defined, out.loss_N, 0.0)
        got = {"total": out.total, "divergence": out.divergence_N, "loss": loss_N}
        return {**found, **{name: relative_error(got[name], value) for name, value in expected.items()}}

    def _leaves(self, case: Case) -> list[Tensor]:
        head = [case.head.weight_VD, case.head.bias_V] if self.trains_head else []
        return [one.detach().requires_grad_() for one in (case.hidden_ND, *head) if one is not None]

    def _ours(self, case: Case) -> tuple[TrainingLoss, list[Tensor]]:
        leaves = self._leaves(case)
        head = replace(case.head, **dict(zip(("weight_VD", "bias_V"), leaves[1:], strict=False)))
        states = TeacherStates(case.teacher_ND)
        if self.means:
            states = mean_embeddings(case.teacher_ND, case.head).states(case.teacher_ND)
        teacher = TeacherTerm(states, self.divergence, self.temperature, case.head, self.top_k)
        rule = decided_by(specs.paper()) if self.by_loss else self.decision(case.label_N.device)
        gain = None if self.factor is None else lambda z_RV, loss_R, selected_R: self.factor(z_RV, loss_R)
        out = training_loss(leaves[0], head, case.label_N, rule, teacher=teacher, gain=gain)
        out.total.backward()
        return out, leaves

    def _exact(self, case: Case, out: TrainingLoss) -> dict[str, Any]:
        """Return the same in float64, with the weights that the kernel's rule has decided."""
        leaves = self._leaves(case)
        head = replace(case.head, **dict(zip(("weight_VD", "bias_V"), leaves[1:], strict=False)))
        z_NV = references.logits(head, leaves[0])
        loss_N = references.label_loss(torch.log_softmax(z_NV, -1), case.label_N)
        teacher_NV = references.logits(case.head, case.teacher_ND)
        divergence_N = references.divergence(self.divergence, z_NV, teacher_NV, self.temperature, self.top_k)
        given = out.selected_N, ~out.selected_N
        weights = given if self.by_loss else self.decision(case.label_N.device).weights
        mle_N, distill_N = (weight_N.double() for weight_N in weights)
        scale_N = torch.ones_like(loss_N) if self.scale is None else self.scale(z_NV, loss_N)
        total = (mle_N * scale_N * loss_N + distill_N * divergence_N).sum()
        total.backward()
        trained = mle_N != 0
        return {
            "gradients": [leaf.grad for leaf in leaves],
            "total": total,
            "loss": loss_N if self.by_loss else torch.where(trained, loss_N, 0.0),
            **({"divergence": torch.where(distill_N != 0, divergence_N, 0.0)} if bool(distill_N.any()) else {}),
        }


def _probability(z_NV: Tensor, loss_N: Tensor) -> Tensor:
    return torch.exp(-loss_N.detach())


def _focal(z_NV: Tensor, loss_N: Tensor) -> Tensor:
    return (1 - torch.exp(-loss_N)) ** 2


def _top_entropy(z_NV: Tensor, loss_N: Tensor) -> Tensor:
    top_NA = z_NV.detach().topk(label_factors.TOP_ENTROPY_TOKENS).values
    return references.entropy(torch.log_softmax(top_NA, -1)) / label_factors.TOP_ENTROPY_SCALE


THIRDS, BOTH, ALL = references.third_each, references.both_each, references.train_each
CHECKS = {
    "cross-entropy": LossCheck(ALL),
    "cross-entropy and forward KL": LossCheck(THIRDS),
    "selection by loss": LossCheck(THIRDS, by_loss=True),
    "mean embeddings": LossCheck(THIRDS, means=True),
    "mean embeddings, selection by loss": LossCheck(THIRDS, means=True, by_loss=True),
    "sum on one token": LossCheck(BOTH),
    "sum on one token, mean embeddings": LossCheck(BOTH, means=True),
    "reverse KL": LossCheck(THIRDS, divergence="reverse_kl"),
    "Jensen-Shannon": LossCheck(THIRDS, divergence="jsd"),
    "temperature 2": LossCheck(THIRDS, temperature=2.0),
    "top-k teacher": LossCheck(THIRDS, top_k=50),
    "soft cap": LossCheck(THIRDS, {"softcap": 5.0}),
    "soft cap, sum on one token": LossCheck(BOTH, {"softcap": 5.0}),
    "bias and scale": LossCheck(THIRDS, {"bias": True, "scale": 0.5}),
    "trained head": LossCheck(THIRDS, {"bias": True}, trains_head=True),
    "factor p": LossCheck(ALL, factor=label_factors.probability, scale=_probability),
    "factor (1 - p)^2": LossCheck(ALL, factor=partial(label_factors.focal, gamma=2.0), scale=_focal),
    "factor of the top entropy": LossCheck(ALL, factor=label_factors.top_entropy, scale=_top_entropy),
}


def statistics_errors(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the errors of entropy and top-1 accuracy that the training loss reads off its blocks."""
    case = Case.draw(device, dtype)
    statistics = TokenStatistics(case.label_N, torch.float64 if dtype == torch.float64 else torch.float32)
    decision = references.train_each(device)
    training_loss(case.hidden_ND.requires_grad_(), case.head, case.label_N, decision, statistics=statistics)
    exact = case.exact()
    z_NV = references.logits(exact.head, exact.hidden_ND)
    wrong_N = statistics.is_top1_N != (z_NV.argmax(1) == case.label_N)
    return {
        "entropy": relative_error(statistics.entropy_N, references.entropy(torch.log_softmax(z_NV, -1))),
        "top-1": float(wrong_N.double().mean()),
    }
