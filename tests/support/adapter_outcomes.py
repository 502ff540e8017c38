"""What tokenuq computes with an adapter, beside plain PEFT and PyTorch: the same numbers, or a refusal.

Each function takes a function that makes a fresh model, and returns the message of the refusal, or None if the numbers
agree. Wrong numbers fail.
"""

import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from tests.support.peft_kinds import trained
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import TokenObjective, measure_bald, score_tokens
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout

TEXTS = ["The farmer has 12 apples.", "sells 5", "a b c d e f g"]
ROWS = [
    {"input_ids": [3, 4, 5, 6, 7, 8, 9], "labels": [-100, -100, 5, 6, 7, 8, 9], "attention_mask": [1] * 7},
    {
        "input_ids": [9, 5, 3, 11, 12, 2, 2],
        "labels": [-100, 5, 3, 11, -100, -100, -100],
        "attention_mask": [1] * 5 + [0] * 2,
    },
]
INPUTS = {key: torch.tensor([row[key] for row in ROWS]) for key in ROWS[0]}
LABELS = INPUTS["labels"][:, 1:][INPUTS["labels"][:, 1:] != -100]
DISTILL = {"select": "all", "selected": {"distill": {}}}
HALF = {"select": {"by": "loss", "quantile": 0.5}, "rest": {"distill": {}}}


class OneStep(TokenObjective, Trainer):
    """Trains one step at a learning rate of 0, and keeps loss and gradients."""

    def training_step(self, *args, **kwargs) -> Tensor:
        torch.manual_seed(0)
        loss = super().training_step(*args, **kwargs)
        self.loss = loss.item()
        self.grads = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return loss


def trainer(model: nn.Module, ablation, **kwargs) -> OneStep:
    """Return a Trainer of one step over `INPUTS`."""
    arguments = {"max_steps": 1, "learning_rate": 0.0, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments |= {"save_strategy": "no", "logging_strategy": "no", "max_grad_norm": 0.0}
    arguments |= {"per_device_train_batch_size": len(ROWS)}
    return OneStep(
        model=model,
        args=TrainingArguments(tempfile.mkdtemp(), **arguments),
        train_dataset=ROWS,
        data_collator=lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]},
        ablation=ablation,
        **kwargs,
    )


def predicting(logits_BTV: Tensor) -> Tensor:
    """Return the logits `[N, V]` that predict the response tokens of `INPUTS`."""
    return logits_BTV[:, :-1][INPUTS["labels"][:, 1:] != -100]


def student_logits(model: nn.Module) -> Tensor:
    """Return `predicting` of the model's own forward pass in train mode, with the noise of `OneStep`."""
    torch.manual_seed(0)
    inputs = {key: value for key, value in INPUTS.items() if key != "labels"}
    return predicting(model.train()(**inputs).logits)


def assert_same_gradients(got: dict[str, Tensor], model: nn.Module) -> None:
    """Assert that gradients by name are those of the model's parameters."""
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected and set(got) == set(expected)
    # Small gradients may be differences of large ones.
    largest = max(float(grad.norm()) for grad in expected.values())
    for name, grad in expected.items():
        assert (got[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-4 * largest, name


def score_outcome(make: Callable[[], nn.Module]) -> str | None:
    """Compare `score_tokens` with the model's own forward pass, one text at a time."""
    model, tokenizer = trained(make()), tiny_tokenizer()
    try:
        losses = torch.tensor(score_tokens(model, tokenizer, TEXTS).sort("text", "position")["loss"].to_list())
    except InputError as error:
        return str(error)
    model.eval()
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    with torch.no_grad():
        expected = [F.cross_entropy(model(input_ids=i).logits[0, :-1], i[0, 1:], reduction="none") for i in ids]
    torch.testing.assert_close(losses.double(), torch.cat(expected).double(), rtol=1e-4, atol=1e-4)
    return None


def train_outcome(make: Callable[[], nn.Module]) -> str | None:
    """Compare loss and gradients of cross-entropy with plain PyTorch."""
    model = trained(make())
    try:
        ours = trainer(model, {"select": "all"})
        ours.train()
    except InputError as error:
        return str(error)
    plain = trained(make())
    loss = F.cross_entropy(student_logits(plain), LABELS)
    loss.backward()
    torch.testing.assert_close(ours.loss, loss.item(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(ours.grads, plain)
    return None


def teacher_outcome(make: Callable[[], nn.Module], base: Callable[[], nn.Module]) -> str | None:
    """Compare loss and gradients with the default teacher with those with the pristine base model as teacher.

    Half of the tokens are trained by cross-entropy, half distilled. The model is changed after the Trainer was made, so
    that base tensors that are trained in place have changed.
    """
    model = make()
    before = flags(model)
    try:
        ours = trainer(model, HALF)
        trained(model)
        ours.train()
    except InputError as error:
        return str(error)
    plain = trained(make())
    with torch.no_grad():
        teacher = predicting(base()(input_ids=INPUTS["input_ids"], attention_mask=INPUTS["attention_mask"]).logits)
    logits = student_logits(plain)
    logq, logp = teacher.log_softmax(-1), logits.log_softmax(-1)
    loss_N = F.cross_entropy(logits, LABELS, reduction="none")
    selected_N = torch.zeros(len(LABELS), dtype=torch.bool)
    selected_N[loss_N.topk(count_selected(0.5, len(LABELS))).indices] = True
    loss = torch.where(selected_N, loss_N, (logq.exp() * (logq - logp)).sum(-1)).mean()
    loss.backward()
    torch.testing.assert_close(ours.loss, loss.item(), rtol=1e-4, atol=1e-6)
    assert_same_gradients(ours.grads, plain)
    assert flags(model)[1] == before[1]
    return None


def flags(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    """Return train mode of each module, and `requires_grad` of each parameter."""
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )


class FixedMask(nn.Module):
    """A dropout with a given mask."""

    def __init__(self, factor: Tensor):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def bald_outcome(make: Callable[[], nn.Module]) -> str | None:
    """Compare `measure_bald` with PEFT's own passes in train mode, with the same masks in place of its dropouts."""
    model, tokenizer, spec = trained(make()), tiny_tokenizer(), UncertaintySpec(samples=3, dropout=0.3)
    model.eval()
    before = flags(model)
    try:
        table = measure_bald(model, tokenizer, TEXTS[:1], samples=3, dropout=0.3)
    except InputError as error:
        return str(error)
    assert flags(model) == before
    ids, example_id = torch.tensor([tokenizer(TEXTS[0])["input_ids"]]), f"{0:012d}"
    masks = []
    with monte_carlo_dropout(model, spec) as start_pass:
        dropouts = [
            (layer, name, d) for layer in model.modules() for name, d in getattr(layer, "lora_dropout", {}).items()
        ]
        dropouts = [(layer, name, d) for layer, name, d in dropouts if hasattr(d, "masks")]
        for sample in range(3):
            start_pass(sample, [example_id])
            x = [torch.ones(1, ids.shape[1], layer.in_features) for layer, _, _ in dropouts]
            masks.append([(d.kept(x_BTI) != 0) * d.scale for (_, _, d), x_BTI in zip(dropouts, x, strict=True)])
    probabilities = []
    # The tiny model has no other dropout, so that train mode changes nothing else.
    model.train()
    for sample in range(3):
        for (layer, name, _), factor in zip(dropouts, masks[sample], strict=True):
            layer.lora_dropout[name] = FixedMask(factor)
        with torch.no_grad():
            probabilities.append(model(input_ids=ids).logits[0, :-1].double().softmax(-1))
    p_KNV = torch.stack(probabilities)
    expected = (p_KNV * (p_KNV / p_KNV.mean(0)).log()).sum(-1).mean(0)
    assert expected.max() > 1e-3
    torch.testing.assert_close(torch.tensor(table["bald"].to_list()).double(), expected, rtol=1e-3, atol=1e-5)
    return None


def outcomes(make: Callable[[], nn.Module], base: Callable[[], nn.Module]) -> dict[str, str | None]:
    """Return the outcome of each use: the message of the refusal, or None.

    Args:
        make: returns a model with a fresh adapter.
        base: returns the base model without it.
    """
    with_teacher = teacher_outcome(make, base)
    return {
        "score": score_outcome(make),
        # Trained beside the teacher already, unless that is refused.
        "train": with_teacher and train_outcome(make),
        "default teacher": with_teacher,
        "BALD": bald_outcome(make),
    }
