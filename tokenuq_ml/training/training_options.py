"""Keys of a study's training that ask something of the machine or of the layers: checked before, undone afterwards.

The Trainer's own arguments do the work (`setup.training_arguments`). What it would do otherwise, or not at all, is
refused here in one sentence.
"""

import importlib.util
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.lora_linear import composed_lora
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.sharding import is_sharded

EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
PAGED = ("paged_adamw_32bit", "paged_adamw_8bit")


def check_optimizer(train: TrainSpec, ablation: AblationSpec, device: str) -> None:
    """Check that the optimiser exists here, and keeps what the ablation needs of it.

    Raises:
        InputError: it does not; the message says what to set.
    """
    name = train.optimizer
    if name in (*EIGHT_BIT, *PAGED) and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"train.optimizer: {name} needs the package bitsandbytes, which is not installed; pip install "
            "'tokenuq[quantized]', or set adamw_torch"
        )
    if name in PAGED and device.split(":")[0] != "cuda":
        # bitsandbytes would go on without pages, after a warning.
        unpaged = "adamw_8bit" if name in EIGHT_BIT else "adamw_torch"
        raise InputError(
            f"train.optimizer: {name} moves its moments between GPU and host, and this machine computes on {device}; "
            f"set {unpaged}"
        )
    if name in EIGHT_BIT and ablation.rank_growth is not None:
        raise InputError(
            f"train.optimizer: {name} keeps its moments in blocks of 8 bits, and rank_growth of {ablation.name} clears "
            "those of single ranks; set adamw_torch or adamw_torch_fused"
        )


def check_layers(model: PeftModel | PreTrainedModel, train: TrainSpec) -> None:
    """Check that the model's layers can be recomputed, compiled and replaced as the study says.

    Raises:
        InputError: they cannot.
    """
    lm = causal_lm(model)
    if train.gradient_checkpointing and not lm.supports_gradient_checkpointing:
        raise InputError(
            f"train.gradient_checkpointing: transformers cannot recompute the layers of {type(lm).__name__}; set it to "
            "false, and a smaller micro_batch_size"
        )
    if train.liger_kernel:
        _check_liger(lm, train)
    if not train.torch_compile:
        return
    if is_sharded(model):
        raise InputError(
            "train.torch_compile: the layers of a sharded model are gathered between compiled parts, which is not "
            "supported; set it to false, or leave out `sharding`"
        )
    if problem := _why_not_compiled(lm.device.type):
        raise InputError(f"train.torch_compile: {problem}; install it, or set torch_compile to false")


def _check_liger(lm: PreTrainedModel, train: TrainSpec) -> None:
    """Check that Liger has layers for the model here; transformers would train without them, or stop in their midst."""
    kind, problem = lm.config.model_type, None
    if lm.device.type != "cuda":
        problem = f"Liger's layers need a GPU, and this machine computes on {lm.device.type}; set it to false"
    elif train.torch_compile:
        problem = "torch.compile fuses the same operations; set either liger_kernel or torch_compile to false"
    elif importlib.util.find_spec("liger_kernel") is None:
        problem = "the package liger-kernel is not installed; pip install 'tokenuq[gpu]', or set it to false"
    elif kind not in _types_of_liger():
        problem = f"Liger has no layers for models of type {kind!r}; set it to false"
    if problem:
        raise InputError(f"train.liger_kernel: {problem}")


def _types_of_liger() -> Collection[str]:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return MODEL_TYPE_TO_APPLY_LIGER_FN


def _why_not_compiled(device: str) -> str | None:
    if device != "cpu":
        return None if importlib.util.find_spec("triton") else "torch.compile needs triton on a GPU, which is missing"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    found = any(shutil.which(name) for name in compilers)
    return None if found else f"torch.compile needs a C++ compiler on a CPU, and {compilers[0]} is missing"


@contextmanager
def prepared_layers(model: PeftModel | PreTrainedModel, train: TrainSpec) -> Iterator[None]:
    """Train inside the context as the study says; the Trainer leaves layers checkpointed, and the embeddings hooked.

    Compiled layers are PEFT's own: torch.compile fuses them, and our fused ones cannot be traced. Their dropout draws
    what it would draw uncompiled, so that a pass that only selects has the masks of the pass that trains.
    """
    with ExitStack() as stack:
        if train.gradient_checkpointing:
            stack.callback(_stop_checkpointing, causal_lm(model))
        if train.torch_compile:
            stack.enter_context(composed_lora(model))
            stack.enter_context(_eager_draws())
            # What accelerate reads when the Trainer wraps the model; later Trainers of the process may not compile.
            stack.callback(os.environ.pop, "ACCELERATE_DYNAMO_BACKEND", None)
        yield


def _stop_checkpointing(lm: PreTrainedModel) -> None:
    stop = getattr(lm, "activation_checkpointing_disable", None) or lm.gradient_checkpointing_disable
    stop()
    lm.disable_input_require_grads()


@contextmanager
def _eager_draws() -> Iterator[None]:
    from torch._inductor import config

    with config.patch(fallback_random=True):
        yield
