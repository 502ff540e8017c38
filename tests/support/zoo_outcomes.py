"""What becomes of each model of the zoo: right against its own forward pass, refused, or impossible to build.

Shapes: B sequences, T positions, V vocabulary, N response tokens.
"""

import random
import tempfile
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from tests.support.tiny_models import FLOAT32, VOCAB
from tests.support.zoo import tiny_zoo_model
from tokenuq_ml import TokenObjective
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.forward import accept_token_function
from tokenuq_ml.scoring.token_losses import score_examples

LENGTHS = (21, 13, 6, 3)
"""Longer and shorter than windows, chunks and convolutions."""


class Outcome(NamedTuple):
    """What becomes of a model type."""

    name: str
    """Name of the class; the type, if it cannot be built."""
    outcome: str
    """`right`, `refused` or `not built`."""
    reason: str = ""


class _Objective(TokenObjective, Trainer):
    pass


def outcome(kind: str) -> Outcome:
    """Return what becomes of a model type.

    Raises:
        AssertionError: a number is wrong.
    """
    try:
        model = tiny_zoo_model(kind)
    except Exception as error:
        return Outcome(kind, "not built", str(error).strip().splitlines()[0])
    name = type(model).__name__
    try:
        check_scores(model)
        check_objective(model)
    except InputError as error:
        return Outcome(name, "refused", str(error))
    return Outcome(name, "right")


def texts() -> list[TokenizedExample]:
    """Return random texts of several lengths, each after a prompt of one or two tokens."""
    draw, made = random.Random(0), []
    for number, length in enumerate(LENGTHS):
        ids = [draw.randrange(3, VOCAB) for _ in range(length)]
        made.append(
            TokenizedExample(f"zoo/{number}", "zoo", "test", ids, [place > number % 2 for place in range(length)])
        )
    return made


def plain_log_probs(model: PreTrainedModel, example: TokenizedExample) -> torch.Tensor:
    """Return `[N, V]` of one text alone, from all logits of the model."""
    ids_1T = torch.tensor([list(example.input_ids)])
    logits_NV = model(input_ids=ids_1T, use_cache=False).logits[0, [position - 1 for position in example.positions]]
    return logits_NV.double().log_softmax(-1)


def plain_losses(model: PreTrainedModel, example: TokenizedExample) -> torch.Tensor:
    labels = torch.tensor([example.input_ids[position] for position in example.positions])
    return torch.nn.functional.nll_loss(plain_log_probs(model, example), labels, reduction="none")


def check_scores(model: PreTrainedModel) -> None:
    """Compare losses and entropies of a padded batch with those of each text alone."""
    rows = score_examples(model, texts(), FLOAT32).sort("example_id", "position")
    with torch.no_grad():
        losses = torch.cat([plain_losses(model, example) for example in texts()])
        logp_NV = torch.cat([plain_log_probs(model, example) for example in texts()])
    entropies = -(logp_NV.exp() * logp_NV).sum(-1)
    assert losses.std() > 0.05, f"losses that hardly differ: {losses.std()}"
    _assert_close(torch.tensor(rows["loss"].to_list()), losses, "losses")
    _assert_close(torch.tensor(rows["entropy"].to_list()), entropies, "entropies")


def check_objective(model: PreTrainedModel) -> None:
    """Compare loss and gradients of the objective `mle`, all texts in one batch, with those of each text alone."""
    model.requires_grad_(True)
    examples = texts()
    batch = collate(examples)
    labels_BT = batch.input_ids_BT.masked_fill(~batch.response_BT, -100)
    args = TrainingArguments(tempfile.gettempdir(), report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no")
    trainer = _Objective(model=model, args=args, ablation={"select": "all"})
    inputs = {"input_ids": batch.input_ids_BT, "labels": labels_BT}
    inputs["attention_mask"] = (torch.arange(batch.input_ids_BT.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    loss, grads = _step(trainer, model, inputs)
    model.zero_grad()
    plain = sum(plain_losses(model, example).sum() for example in examples) / batch.tokens
    plain.backward()
    _assert_close(loss, plain.detach(), "loss of the objective")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.norm() > 1e-4:
            _assert_close(grads[name], parameter.grad, f"gradient of {name}", 1e-4)


def _step(trainer, model, inputs):
    model.train()
    with accept_token_function(model):
        (batch,), tokens = trainer.get_batch_samples(iter([inputs]), 1, "cpu")
        loss = trainer.compute_loss(model, batch, num_items_in_batch=tokens)
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _assert_close(ours: torch.Tensor, plain: torch.Tensor, what: str, tolerance: float = 2e-5) -> None:
    error = float((ours.double() - plain.double()).norm() / plain.double().norm())
    assert error <= tolerance, f"{what}: off by {error:.1e} relative"
