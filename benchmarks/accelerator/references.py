"""What the kernels compute, in plain PyTorch from full logits in float64.

Shapes: N response tokens, D hidden size, V vocabulary, K samples, S possible ids.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.weight_rule import BatchDecision

N, D, K = 37, 48, 4
"""Sizes of the checks: no multiples of a kernel's blocks."""


def vocabulary(device: torch.device) -> int:
    """Return V: several blocks of every kernel on an accelerator, and little work on a CPU."""
    return 3001 if device.type == "cpu" else 20_011


@dataclass(frozen=True)
class Case:
    """Random inputs in a dtype, and the same values in float64."""

    head: Head
    hidden_ND: Tensor
    teacher_ND: Tensor
    label_N: Tensor

    @classmethod
    def draw(
        cls,
        device: torch.device,
        dtype: torch.dtype,
        softcap: float | None = None,
        scale: float = 1.0,
        bias: bool = False,
    ) -> "Case":
        """Return random inputs, the same for every dtype up to its rounding."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        rows = vocabulary(device)
        weight_VD, bias_V = normal(rows, D) * 0.25, normal(rows) if bias else None
        label_N = torch.randint(rows, (N,), generator=generator)
        label_N[:2] = torch.tensor([0, rows - 1])
        hidden_ND = normal(N, D)
        # Not far from the student, as a teacher is.
        teacher_ND = (hidden_ND + 0.5 * normal(N, D)).to(dtype)
        return cls(Head(weight_VD, bias_V, softcap, scale), hidden_ND, teacher_ND, label_N.to(device))

    def exact(self) -> "Case":
        """Return the case in float64."""
        head = replace(self.head, weight_VD=self.head.weight_VD.double(), bias_V=_double(self.head.bias_V))
        return replace(self, head=head, hidden_ND=self.hidden_ND.double(), teacher_ND=self.teacher_ND.double())

    @property
    def samples_KND(self) -> Tensor:
        """K samples of the states, as different as those of dropout at a high rate."""
        shifts = torch.linspace(0.0, 0.3, K).tolist()
        return torch.stack([torch.lerp(self.hidden_ND, self.teacher_ND, shift) for shift in shifts])


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def logits(head: Head, hidden_ND: Tensor) -> Tensor:
    """Return `[N, V]`, all at once."""
    z_NV = hidden_ND @ head.weight_VD.T
    if head.bias_V is not None:
        z_NV = z_NV + head.bias_V
    z_NV = z_NV * head.scale
    return z_NV if head.softcap is None else head.softcap * torch.tanh(z_NV / head.softcap)


def label_loss(logp_NV: Tensor, label_N: Tensor) -> Tensor:
    """Return the cross-entropy of each token."""
    return -logp_NV.gather(1, label_N[:, None])[:, 0]


def entropy(logp_NV: Tensor) -> Tensor:
    """Return the entropy of each row."""
    return -(logp_NV.exp() * logp_NV).sum(1)


def kl(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Return `KL(p || q)` of each row; ids at which p is 0 add nothing."""
    p_NV = logp_NV.exp()
    return torch.where(p_NV > 0, p_NV * (logp_NV - logq_NV), 0.0).sum(1)


def divergence(name: str, student_NV: Tensor, teacher_NV: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Return a divergence of each token from full logits; the teacher's have no gradient."""
    teacher_NV = teacher_NV.detach() / temperature
    if top_k is not None:
        smallest_N1 = teacher_NV.topk(top_k).values[:, -1:]
        teacher_NV = teacher_NV.masked_fill(teacher_NV < smallest_N1, -torch.inf)
    logq_NV, logp_NV = torch.log_softmax(teacher_NV, -1), torch.log_softmax(student_NV / temperature, -1)
    if name == "forward_kl":
        return kl(logq_NV, logp_NV)
    if name == "reverse_kl":
        return kl(logp_NV, logq_NV)
    mean_NV = ((logp_NV.exp() + logq_NV.exp()) / 2).log()
    return (kl(logq_NV, mean_NV) + kl(logp_NV, mean_NV)) / 2


def third_each(device: torch.device) -> BatchDecision:
    """Return the decision to train a third of the tokens, distil a third with weight 0.7, and leave out the rest."""
    third_N = torch.arange(N, device=device) % 3
    return BatchDecision.of_weights((third_N == 0).float(), (third_N == 1).float() * 0.7)


def both_each(device: torch.device) -> BatchDecision:
    """Return the decision to train and distil every token."""
    return BatchDecision.of_weights(torch.ones(N, device=device), torch.full((N,), 0.7, device=device))


def train_each(device: torch.device) -> BatchDecision:
    """Return the decision to train every token by cross-entropy."""
    return BatchDecision.of_weights(torch.ones(N, device=device), torch.zeros(N, device=device))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return `|got - expected| / |expected|`; infinite if a value is not finite."""
    got, expected = got.detach().double().flatten(), expected.detach().double().flatten()
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float64).tiny))
