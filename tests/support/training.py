"""Training setups on tiny models, and the training objective in plain PyTorch to compare with."""

import torch

from tests.support.tiny_models import FLOAT32, examples
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import OnlineTeacher

MLE = AblationSpec(name="mle", select="all")
MASKED = AblationSpec(name="masked", select={"by": "loss", "quantile": 0.25})
PAPER = AblationSpec(name="paper", select={"by": "loss", "quantile": 0.25}, rest={"distill": {}})


def training_setup(ablation=PAPER, micro=4, count=11, epochs=2, save_steps=50, **kwargs) -> TrainingSetup:
    """Return a training of `count` examples in batches of four, split into micro-batches of `micro`."""
    spec = TrainSpec(epochs=epochs, batch_size=4, micro_batch_size=micro, learning_rate=1e-2, save_steps=save_steps)
    return TrainingSetup(examples(count), spec, ablation, 0, FLOAT32, OnlineTeacher(None, FLOAT32), **kwargs)


def lora_weights(model) -> dict[str, torch.Tensor]:
    """Return copies of the adapter's weights by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora" in name}


def plain_objective(model, batch, ablation):
    """Return the objective of one batch, computed from full logits in plain PyTorch; the base model is the teacher."""
    logits = model(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    with torch.no_grad(), model.disable_adapter():
        teacher = model(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    ce = torch.nn.functional.cross_entropy(logits, batch.label_N, reduction="none")
    kl = torch.nn.functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    weight = torch.cat([torch.tensor(e.weights or [1.0] * len(e.input_ids))[e.positions] for e in batch.examples])
    if ablation.select.by == "all":
        return (weight * ce).mean()
    k = count_selected(ablation.select.quantile, len(ce))
    top = torch.zeros_like(ce, dtype=torch.bool)
    top[ce.detach().topk(k).indices] = True
    return (weight * torch.where(top, ce, kl if ablation.rest.kind == "distill" else 0.0)).sum() / len(ce)
