"""Training setups on tiny models, and the training objective in plain PyTorch to compare with."""

from unittest.mock import patch

import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_peft
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import collate
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import OnlineTeacher
from tokenuq_ml.training.teacher_cache import CachedTeacher, TeacherCache
from tokenuq_ml.training.trainer import train

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


def assert_same_adapter(model, expected) -> None:
    """Assert that the LoRA weights of two models are equal bit for bit."""
    weights = lora_weights(model)
    for name, tensor in lora_weights(expected).items():
        assert torch.equal(weights[name], tensor), name


def setup_with_teacher(folder, states, dropout=0.0, form="mean_embeddings"):
    """Return a student and its setup, with the teacher stored in `folder`: `cached` in a form, or `online`."""
    rows, online = examples(11), OnlineTeacher("teacher", FLOAT32)
    student = attach_adapter(tiny_peft(trained=False, dropout=dropout), folder, "teacher")
    setup = training_setup(save_steps=1, snapshot_fractions=(0.5,))
    setup.teacher = online
    if states == "cached":
        digests = {"dataset_digest": "d", "teacher_digest": "t"}
        with TeacherCache(folder / "cache", rows, head_of(student), **digests) as cache:
            for example in rows:
                cache.put(example.example_id, online.states(student, collate([example])).hidden_ND)
        distillation = PAPER.rest.distill if form == "mean_embeddings" else None
        setup.teacher = CachedTeacher(folder / "cache", "cpu", **digests, distillation=distillation)
        assert setup.teacher.form == form
    return student, setup


class _Killed(BaseException):
    """Stands in for a kill: no handler in production code catches it."""


def kill_training(step, model, setup, work_dir, tracking=None) -> None:
    """Train until the row of a step is recorded, then stop as if the process was killed."""
    end_step = StepRecorder.end_step

    def die(self, *args):
        row = end_step(self, *args)
        if row["step"] == step:
            raise _Killed
        return row

    with patch.object(StepRecorder, "end_step", die), pytest.raises(_Killed):
        train(model, setup, work_dir, RecordingReporter(), "x", tracking)
