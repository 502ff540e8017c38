"""What is done with selected tokens and with the rest: weights for the kernel.

The objective of an optimiser batch with N response tokens is
`(1/N) * sum_n selected_n ? CE_n : weight * KL(teacher_n || student_n)` (Liu, Benjamin,
Zador 2025, arXiv 2503.16511). Sums are divided once by the N of the whole optimiser
batch, so that accumulation and padding change nothing. This file knows neither how
tokens were selected nor how the divergence is computed.
"""

import torch
from torch import Tensor

from tokenuq_ml.kernels import Weights
from tokenuq_ml.specs import AblationSpec, DistillSpec, ObjectiveSpec


def mle(objective: ObjectiveSpec) -> tuple[float, float]:
    """Cross-entropy with the label."""
    return 1.0, 0.0


def distill(objective: ObjectiveSpec) -> tuple[float, float]:
    """`weight` times the divergence to the teacher."""
    return 0.0, objective.distill.weight


def none(objective: ObjectiveSpec) -> tuple[float, float]:
    """Nothing: the token is not trained."""
    return 0.0, 0.0


OBJECTIVES = {"mle": mle, "distill": distill, "none": none}


def token_weights(ablation: AblationSpec, selected_N: Tensor) -> Weights:
    """Float32 weights of each token, from the mask of the selected ones."""
    chosen, rest = (OBJECTIVES[o.kind](o) for o in (ablation.selected, ablation.rest))
    columns = (torch.where(selected_N, float(a), float(b)) for a, b in zip(chosen, rest, strict=True))
    return Weights(*(column.float() for column in columns))


def distillation(ablation: AblationSpec) -> DistillSpec | None:
    """How the ablation distils; None where it does not. Both parts agree but for their weights."""
    for objective in (ablation.selected, ablation.rest):
        if objective.distill is not None:
            return objective.distill
    return None
