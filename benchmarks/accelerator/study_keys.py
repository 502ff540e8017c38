"""What each key of a study's training and model changes in a student's step: `train: {torch_compile}` and the like.

Needs tokenuq's own packages (pydantic, polars), since the study's keys are read and applied as the stages do it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.inference import numerics_of
from benchmarks.accelerator.own_steps import cached_form, own_step
from benchmarks.accelerator.shapes import Setting, base_model, own_model, randomised
from benchmarks.accelerator.specs import LORA, mle, paper
from tokenuq_ml.models.adapters import add_adapter

OWN, QUANTIZED = ("pydantic", "polars"), ("pydantic", "polars", "bitsandbytes")


@dataclass(frozen=True)
class KeyedStep:
    """A student's step with one key that `ours, cached teacher` has not."""

    name: str
    make_model: Callable[[Setting], PeftModel | PreTrainedModel] = own_model
    keys: dict[str, Any] = field(default_factory=dict)
    """Of the study's `train`."""
    packages: tuple[str, ...] = OWN
    trains_all: bool = False
    """Whether the model's own weights are trained, by cross-entropy: a teacher would have a head of its own."""

    def measure(self, setting: Setting, clock: StepClock) -> tuple[Measured, dict[str, float]]:
        """Return the cost of a step and the shares of its phases."""
        ablation, form = (mle(), None) if self.trains_all else (paper(), cached_form(setting))
        prepared, options = _applied(self.keys)
        return own_step(setting, clock, ablation, form, self.make_model, prepared, **options)


def _applied(keys: dict[str, Any]) -> tuple[Callable[[Any], AbstractContextManager], dict[str, Any]]:
    """Return the context in which a study with these keys trains, and the Trainer's arguments that it sets."""
    if not keys:
        return nullcontext, {}
    from tokenuq_ml.config import TrainSpec
    from tokenuq_ml.training.setup import CHECKPOINTING
    from tokenuq_ml.training.training_options import prepared_layers

    train = TrainSpec(**keys)
    options = {
        CHECKPOINTING: train.gradient_checkpointing,
        "torch_compile": train.torch_compile,
        "optim": train.optimizer,
    }
    return partial(prepared_layers, train=train), options


def _quantised(kind: str, setting: Setting) -> PeftModel:
    from tokenuq_ml.models.quantization import load_quantised

    folder = _saved(setting)
    model = load_quantised(folder, numerics_of(setting), kind)
    return randomised(add_adapter(model, LORA, seed=0))


def _saved(setting: Setting) -> Path:
    """Return the folder of the base model, which bitsandbytes quantises while it is loaded."""
    folder = setting.folder / setting.shape.name
    if not folder.is_dir():
        base_model(setting).save_pretrained(folder)
    return folder


def _dora(setting: Setting) -> PeftModel:
    return randomised(add_adapter(base_model(setting), LORA, seed=0, use_dora=True))


def _all_weights(setting: Setting) -> PreTrainedModel:
    """Return the model with all weights trained, in float32 as a study has them (autocast computes in bfloat16)."""
    return base_model(setting).to(torch.float32).requires_grad_(True)


COMPILED = KeyedStep("ours, cached teacher, torch_compile", keys={"torch_compile": True})
KEYED_STEPS = (
    KeyedStep("gradient_checkpointing", keys={"gradient_checkpointing": True}),
    KeyedStep("optimizer: adamw_8bit", keys={"optimizer": "adamw_8bit"}, packages=QUANTIZED),
    KeyedStep("quantization: nf4", partial(_quantised, "nf4"), packages=QUANTIZED),
    KeyedStep("quantization: int8", partial(_quantised, "int8"), packages=QUANTIZED),
    KeyedStep("adapter: dora", _dora),
    KeyedStep("adapter: none, plain fine-tuning", _all_weights, trains_all=True),
)
"""In the order in which they are measured; the last ones take longest."""
