"""Peak memory of the training loss at two vocabularies, each in a process of its own, beyond the head's weights."""

import subprocess
import sys

from benchmarks.common import Row

TOKENS, HIDDEN = 2048, 576
SMALL, LARGE = 49_152, 262_144

_CHILD = f"""
import re, sys, torch
from pathlib import Path
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision
status = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
vocabulary, form, rows = int(sys.argv[1]), sys.argv[2], {TOKENS}
draw = lambda *shape: torch.randn(*shape).mul_(0.05).bfloat16()
def loss(rows):
    hidden, teacher, label = draw(rows, {HIDDEN}).requires_grad_(), draw(rows, {HIDDEN}), torch.zeros(rows).long()
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    half = (torch.arange(rows) % 2).float()
    class Halves:
        needs_losses = True
        def decide(self, loss):
            return BatchDecision.of_weights(half, 1 - half)
    training_loss(hidden, head, label, Halves(), teacher=TeacherTerm(states)).total.backward()
head = Head(draw(1024, {HIDDEN}))
loss(8)  # what libraries allocate once
head = Head(torch.empty(vocabulary, {HIDDEN}, dtype=torch.bfloat16).normal_(std=0.05))
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
loss(rows)
print(status("VmHWM") - before)
"""


def peak_mib(vocabulary: int, form: str) -> float:
    """MiB by which the loss of 2,048 tokens raises the process's peak."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(vocabulary), form], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def run(repeats: int) -> list[Row]:
    rows = []
    for form, name in (("means", "mean embeddings"), ("hidden", "hidden states")):
        small, large = peak_mib(SMALL, form), peak_mib(LARGE, form)
        print(f"  {name}: {small:.0f} MiB at {SMALL:,}, {large:.0f} MiB at {LARGE:,}")
        rows.append(
            Row(
                f"peak memory of the loss of {TOKENS:,} tokens, V={LARGE:,} / V={SMALL:,}, teacher as {name}",
                f"{large:.0f} MiB",
                f"{small:.0f} MiB",
                large / small,
                "<= 1.2",
                large <= 1.2 * small,
            )
        )
    return rows
