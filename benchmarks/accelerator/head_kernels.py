"""The output head's kernels alone, at N = 4,096 response tokens: time, memory and launches, next to plain PyTorch.

Shapes: N response tokens, D hidden size, V vocabulary, K samples.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.accelerator import specs
from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.shapes import Setting
from benchmarks.accelerator.specs import SAMPLES
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_scores
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.training.decisions import SelectionRule
from tokenuq_ml.training.tokens import Tokens

LAUNCH_BUDGET = 200
"""Most kernel launches of the head in one step."""
STD = 0.02
"""Standard deviation of the head's weights, as transformers initialises them."""


def decided_by(ablation: SimpleNamespace) -> SelectionRule:
    """Return the rule that a Trainer gives the kernels for an ablation of `specs.py`; all tokens are of one example."""
    return SelectionRule(ablation, lambda loss_N: Tokens(loss_N, torch.zeros_like(loss_N, dtype=torch.long)))


class Inputs:
    """Random states of student and teacher, labels and a head of the setting's shape."""

    def __init__(self, setting: Setting):
        model, generator = setting.shape.architecture, torch.Generator(setting.device).manual_seed(0)
        options = {"device": setting.device, "generator": generator}
        rows, width = setting.shape.response_tokens, model.hidden

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, **options).to(setting.dtype)

        softcap = setting.shape.config.get("final_logit_softcapping")
        self.head = Head(draw(model.vocabulary, width) * STD, softcap=softcap)
        self.hidden_ND, self.teacher_ND = draw(rows, width), draw(rows, width)
        self.label_N = torch.randint(model.vocabulary, (rows,), **options)

    def leaf(self) -> Tensor:
        """Return the student's states as a tensor that gets a gradient."""
        return self.hidden_ND.detach().requires_grad_()


def measure(setting: Setting, clocks: Callable[[], StepClock]) -> Iterator[tuple[str, Measured]]:
    """Yield the cost of each kernel, by its name; `clocks` makes a clock for each."""
    inputs = Inputs(setting)
    for name, call in _calls(inputs).items():
        yield name, clocks().run(call)


def _calls(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Return what is measured, by its name."""
    head, label_N, hidden_ND = inputs.head, inputs.label_N, inputs.hidden_ND
    paper, mle = decided_by(specs.paper()), decided_by(specs.mle())
    forms = {"hidden states": TeacherStates(inputs.teacher_ND)}
    if head.is_linear:
        forms["mean embeddings"] = mean_embeddings(inputs.teacher_ND, head).states(inputs.teacher_ND)

    def objective(states: TeacherStates) -> Callable[[], object]:
        teacher = TeacherTerm(states, "forward_kl", 1.0)
        return lambda: training_loss(inputs.leaf(), head, label_N, paper, teacher=teacher).total.backward()

    return {
        "one head product": lambda: head.product(hidden_ND),
        **{f"training loss: paper objective, teacher as {name}": objective(states) for name, states in forms.items()},
        "training loss: cross-entropy": lambda: training_loss(inputs.leaf(), head, label_N, mle).total.backward(),
        "cross-entropy in plain PyTorch, float32 logits": lambda: _plain(inputs),
        "loss, entropy, rank": lambda: token_scores(hidden_ND, head, label_N),
        f"BALD of {SAMPLES} samples": lambda: monte_carlo_scores(
            hidden_ND.expand(SAMPLES, *hidden_ND.shape), head, label_N
        ),
    }


def _plain(inputs: Inputs) -> None:
    leaf_ND, head = inputs.leaf(), inputs.head
    logits_NV = (leaf_ND @ head.weight_VD.T).float()
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    cross_entropy(logits_NV, inputs.label_N, reduction="sum").backward()
