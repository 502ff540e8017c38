"""Base models whose frozen weights are spread over the processes of a training (FSDP2), for models beyond one device.

transformers shards a model while it loads it: no process ever holds all weights. Each layer's weights are gathered for
its passes only. The adapter, which is small, is whole on every process, and accelerate's DDP averages its gradients; so
checkpoints, resumption and saved adapters are those of an unsharded training.

Measuring does not use it: there, every process has the model, and passes of its own.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics, resolve_numerics


def load_sharded(folder: str | Path, precision: str, processes: int) -> tuple[PreTrainedModel, Numerics]:
    """Load this process's part of the base model, frozen and in eval mode; every process calls this.

    Args:
        folder: Folder that `convert` wrote.
        precision: As for `resolve_numerics`.
        processes: All processes of the training, which have met.

    Raises:
        InputError: transformers cannot shard this architecture.
    """
    # Loads torch.distributed's tensors, which no other model needs.
    from transformers.distributed.configuration_utils import DistributedConfig

    numerics = resolve_numerics(precision)
    # As in `load_model`.
    torch.set_flush_denormal(True)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=numerics.dtype, distributed_config=DistributedConfig(fsdp_size=processes)
        )
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"{folder}: transformers cannot shard this model ({error}); leave `sharding` out of the study"
        ) from error
    model.requires_grad_(False)
    # Trainer takes a model with this mark for one whose trained weights are sharded too, which it cannot resume.
    model._is_distributed_loading_by_transformers = False
    # PEFT takes one with this for a model that is split by tensor parallelism, and gathers it to save an adapter.
    model._tp_size = None
    return model.eval(), numerics


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether weights of the model are spread over processes."""
    return bool(_sharded_modules(model))


def leave_to_fsdp(model: PeftModel | PreTrainedModel) -> None:
    """Let DDP, which wraps the model for training, look after the weights that are not sharded only.

    Raises:
        InputError: a sharded weight is trained.
    """
    modules = _sharded_modules(model)
    if not modules:
        return
    from torch.distributed.tensor import DTensor

    for module in modules:
        # After a pass, the head's weights are still gathered.
        module.reshard()
    sharded = {name: weight for name, weight in model.named_parameters() if isinstance(weight.data, DTensor)}
    trained = [name for name, weight in sharded.items() if weight.requires_grad]
    if trained:
        raise InputError(f"{trained[0]} is trained and sharded; a sharded model is trained by an adapter only")
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(sharded))


def _sharded_modules(model: torch.nn.Module) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
