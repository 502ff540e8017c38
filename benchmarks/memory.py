"""Peak memory of the training loss at two vocabularies, on top of the output head's weights.

Each measurement runs in its own process: `python -m benchmarks.memory VOCABULARY means|hidden` prints MiB.
"""

import subprocess
import sys

import torch
from torch import Tensor

from benchmarks.common import Row
from benchmarks.process_memory import reset_peak, status_mib
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision

TOKENS, HIDDEN = 2048, 576
SMALL, LARGE = 49_152, 262_144
FORMS = {"means": "mean embeddings", "hidden": "hidden states"}
"""Forms in which the teacher's distribution is given."""


class EverySecondToken:
    """A rule that trains every second token by MLE and distils the others. It asks for the losses, as the paper's."""

    needs_losses = True

    def decide(self, loss_N: Tensor) -> BatchDecision:
        """Return the decision for the N tokens."""
        half_N = (torch.arange(len(loss_N)) % 2).float()
        return BatchDecision.of_weights(half_N, 1 - half_N)


def random_states(*shape: int) -> Tensor:
    """Return random bfloat16 values."""
    return torch.randn(*shape).mul_(0.05).bfloat16()


def backward(head: Head, form: str, rows: int) -> None:
    """Compute the loss of `rows` tokens and its gradient."""
    hidden_ND, teacher_ND = random_states(rows, HIDDEN).requires_grad_(), random_states(rows, HIDDEN)
    if form == "hidden":
        states = TeacherStates(teacher_ND)
    else:
        states = mean_embeddings(teacher_ND, head).states(teacher_ND)
    label_N = torch.zeros(rows, dtype=torch.long)
    training_loss(hidden_ND, head, label_N, EverySecondToken(), teacher=TeacherTerm(states)).total.backward()


def growth_mib(vocabulary: int, form: str) -> float:
    """Return the MiB by which the loss raises this process's peak."""
    # The first call allocates what libraries keep.
    backward(Head(random_states(1024, HIDDEN)), form, rows=8)
    head = Head(torch.empty(vocabulary, HIDDEN, dtype=torch.bfloat16).normal_(std=0.05))
    before = status_mib("VmRSS")
    reset_peak()
    backward(head, form, TOKENS)
    return status_mib("VmHWM") - before


def growth_in_own_process(vocabulary: int, form: str) -> float:
    """Return `growth_mib` of a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(vocabulary), form]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run(repeats: int) -> list[Row]:
    """Return one row per form of the teacher's distribution. Memory is measured once, whatever `repeats` is."""
    rows = []
    for form, name in FORMS.items():
        small, large = growth_in_own_process(SMALL, form), growth_in_own_process(LARGE, form)
        print(f"  {name}: {small:.0f} MiB at {SMALL:,}, {large:.0f} MiB at {LARGE:,}")
        measure = f"peak memory of the loss of {TOKENS:,} tokens, V={LARGE:,} / V={SMALL:,}, teacher as {name}"
        rows.append(Row(measure, f"{large:.0f} MiB", f"{small:.0f} MiB", large / small, "<= 1.2", large <= 1.2 * small))
    return rows


if __name__ == "__main__":
    print(growth_mib(int(sys.argv[1]), sys.argv[2]))
