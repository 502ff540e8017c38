"""What becomes of each model type of the zoo: right against its own forward pass, refused, or impossible to build.

Shapes: T positions, V vocabulary, N response tokens.
"""

import random
import tempfile
from functools import cache
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from tests.support.tiny_models import FLOAT32, VOCAB
from tests.support.zoo import NOT_BUILT, tiny_zoo_model
from tokenuq_ml import TokenObjective
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.token_losses import score_examples

LENGTHS = (21, 11, 4)
"""Of the texts: longer and shorter than windows, chunks and convolutions."""
LOSS_NEEDS_MORE = ("git",)
"""Model types that compute a loss only for images with text."""


class Outcome(NamedTuple):
    """What becomes of a model type."""

    outcome: str
    """`right`, `refused` or `not built`."""
    reason: str | None = None
    """Why it is refused or not built; of a right one, why its own forward pass computes the logits, if it does."""


@cache
def outcome_of(kind: str) -> Outcome:
    """Return what becomes of a model type.

    Raises:
        AssertionError: a number is wrong.
        Exception: the model cannot be built, and is not one of `NOT_BUILT`.
    """
    if kind in NOT_BUILT:
        return Outcome("not built", NOT_BUILT[kind])
    model = tiny_zoo_model(kind)
    try:
        check_scores(model)
        # The gradients of the base model's weights are compared too.
        check_objective(with_adapter(model))
    except InputError as error:
        return Outcome("refused", str(error))
    return Outcome("right", output_path(model).reason)


def with_adapter(model: PreTrainedModel) -> PeftModel:
    """Return the model with a LoRA adapter on all linear layers, whose matrices B are not zero."""
    adapted = add_adapter(model, LoraSpec(rank=4, alpha=8, dropout=0.0), 0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return adapted.eval()


def texts() -> list[TokenizedExample]:
    """Return random texts of several lengths; the first one or two tokens of each are its prompt."""
    draw, made = random.Random(0), []
    for number, length in enumerate(LENGTHS):
        ids = [draw.randrange(3, VOCAB) for _ in range(length)]
        response = [place > number % 2 for place in range(length)]
        made.append(TokenizedExample(f"zoo/{number}", "zoo", "test", ids, response))
    return made


def plain_losses(model: PreTrainedModel | PeftModel, example: TokenizedExample) -> tuple[Tensor, Tensor]:
    """Return losses and entropies, `[N]` in float64, of one text alone, from all logits of the model."""
    ids_1T = torch.tensor([list(example.input_ids)])
    before, labels_N = [position - 1 for position in example.positions], ids_1T[0, example.positions]
    logp_NV = model(input_ids=ids_1T, use_cache=False).logits[0, before].double().log_softmax(-1)
    losses_N = torch.nn.functional.nll_loss(logp_NV, labels_N, reduction="none")
    return losses_N, -(logp_NV.exp() * logp_NV).sum(-1)


def check_scores(model: PreTrainedModel | PeftModel, numerics: Numerics = FLOAT32, tolerance: float = 2e-5) -> None:
    """Compare losses and entropies of a padded batch with those of each text alone."""
    scored = scored_losses(model, numerics)
    with torch.no_grad():
        losses_N, entropies_N = map(torch.cat, zip(*(plain_losses(model, text) for text in texts()), strict=True))
    assert losses_N.std() > 0.05, "losses hardly differ, so this shows nothing"
    assert_near(scored[0], losses_N, "losses", tolerance)
    assert_near(scored[1], entropies_N, "entropies", tolerance)


def scored_losses(model: PreTrainedModel | PeftModel, numerics: Numerics) -> tuple[Tensor, Tensor]:
    """Return losses and entropies, `[N]`, that tokenuq measures on all texts in one batch."""
    rows = score_examples(model, texts(), numerics).sort("example_id", "position")
    return torch.tensor(rows["loss"].to_list()).double(), torch.tensor(rows["entropy"].to_list()).double()


def check_objective(model: PreTrainedModel | PeftModel, tolerance: float = 2e-5) -> None:
    """Compare loss and gradients of a training step, all texts in one batch, with those of each text alone.

    Also compares the loss with the one that the model returns if it is given labels.

    The objective is `mle`: the mean over the tokens of all texts. No module of the zoo has dropout, and both sides run
    in train mode, as some modules compute something else there.
    """
    model.requires_grad_(True)
    trainer = one_step(model)
    model.train().zero_grad()
    losses_N = torch.cat([plain_losses(model, text)[0] for text in texts()])
    losses_N.mean().backward()
    assert_near(trainer.loss, losses_N.mean().detach(), "loss of the objective", tolerance)
    if model.config.model_type not in LOSS_NEEDS_MORE:
        with torch.no_grad():
            own = model(**labelled(texts()), use_cache=False).loss
        # transformers computes it in float32.
        assert_near(trainer.loss, own, "loss of the objective against the one that the model returns", 2e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.norm() > 1e-4:
            assert_near(trainer.gradients[name], parameter.grad, f"gradient of {name}", 5 * tolerance)


class OneStep(TokenObjective, Trainer):
    """Keeps loss and gradients of the last training step."""

    def training_step(self, *args, **kwargs):
        self.loss = super().training_step(*args, **kwargs)
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return self.loss


def one_step(model: PreTrainedModel | PeftModel) -> OneStep:
    """Return a trainer after one step of `mle` on all texts, with the learning rate 0."""
    args = TrainingArguments(
        tempfile.gettempdir(),
        per_device_train_batch_size=len(LENGTHS),
        max_steps=1,
        optim="sgd",
        learning_rate=0.0,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        logging_strategy="no",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = OneStep(model=model, args=args, train_dataset=texts(), data_collator=labelled, ablation={"select": "all"})
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def labelled(examples: list[TokenizedExample]) -> dict[str, Tensor]:
    """Return inputs as transformers' collators do: right-padded, with an attention mask and labels."""
    batch = collate(examples)
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    return {
        "input_ids": batch.input_ids_BT,
        "attention_mask": (torch.arange(batch.input_ids_BT.shape[1]) < lengths[:, None]).long(),
        "labels": batch.input_ids_BT.masked_fill(~batch.response_BT, -100),
    }


def assert_near(ours: Tensor, plain: Tensor, what: str, tolerance: float) -> None:
    """Assert that the norm of the difference is small against that of `plain`; `<=`, so that NaN is wrong."""
    error = float((ours.double() - plain.double()).norm() / plain.double().norm())
    assert error <= tolerance, f"{what}: off by {error:.1e} relative"
