"""Base models whose frozen weights are spread over the processes of a stage (FSDP2), for models beyond one device.

transformers shards a model while it loads it: no process ever holds all weights. Each layer's weights are gathered for
its passes only; those of the output layer stay gathered from the first pass, because kernels multiply by them after it.
The adapter, which is small, is complete on every process, and accelerate's DDP averages its gradients; so checkpoints,
resumption and saved adapters are those of an unsharded training.

Gathering is a collective operation: every process makes the same number of passes in the same order, one at a time.
Training does so by itself; measuring deals its batches in step (`process_group.own_results`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.attention import attention_name
from tokenuq_ml.models.base_settings import DEFAULT, BaseSettings
from tokenuq_ml.models.numerics import Numerics, resolve_numerics


def load_sharded(
    folder: str | Path, precision: str, processes: int, settings: BaseSettings = DEFAULT
) -> tuple[PreTrainedModel, Numerics]:
    """Load this process's part of the base model, frozen and in eval mode; every process calls this.

    Args:
        folder: Folder that `convert` wrote.
        precision: As for `resolve_numerics`.
        processes: All processes of the stage, which have met.
        settings: How it is loaded besides.

    Raises:
        InputError: transformers cannot shard this architecture layer by layer, or the settings cannot be used here.
    """
    # Loads torch.distributed's tensors, which no other model needs.
    from transformers.distributed.configuration_utils import DistributedConfig

    numerics = resolve_numerics(precision)
    attention = attention_name(settings.attention, numerics, precision)
    # As in `load_model`.
    torch.set_flush_denormal(True)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=numerics.dtype,
            attn_implementation=attention,
            distributed_config=DistributedConfig(fsdp_size=processes),
        )
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"{folder}: transformers cannot shard this model ({error}); leave `sharding` out of the study"
        ) from error
    if not _is_sharded_by_layer(model):
        raise InputError(
            f"{folder}: transformers has no plan to shard the layers of {class_of(model).__name__}, so that each pass "
            "would gather all weights; leave `sharding` out of the study"
        )
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    if head is not None and is_unit(head):
        # Whatever the plan of the architecture says: a `Head` refers to the gathered weights.
        head.set_reshard_after_forward(False, recurse=False)
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

    # The first module is the root. After a pass, the head's weights are still gathered; and after a pass without the
    # output layer, FSDP takes the pass of its unit for one that goes on, and would not free them.
    modules[0].reset_iter_state()
    sharded = {name: weight for name, weight in model.named_parameters() if isinstance(weight.data, DTensor)}
    trained = [name for name, weight in sharded.items() if weight.requires_grad]
    if trained:
        raise InputError(f"{trained[0]} is trained and sharded; a sharded model is trained by an adapter only")
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(sharded))


def is_unit(module: torch.nn.Module) -> bool:
    """Return whether the module's weights are gathered before its pass."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def class_of(module: torch.nn.Module) -> type:
    """Return the class of a module; not the subclass that FSDP makes of it."""
    return type(module).__bases__[-1] if is_unit(module) else type(module)


def gather_head(lm: PreTrainedModel) -> None:
    """Gather the weights of the output layer, which loading a state dict frees; after a pass they are gathered."""
    head = lm.get_output_embeddings()
    if head is not None:
        # A table of embeddings that is the head too is a weight of the root.
        (head if is_unit(head) else lm).unshard()


@contextmanager
def gathered_around(model: torch.nn.Module, module: torch.nn.Module) -> Iterator[None]:
    """Gather the weights of the unit around a module of the model inside the context, for calls without its hooks.

    Every process enters this. Without sharding it does nothing.
    """
    # Outer modules come first.
    units = [unit for unit in _sharded_modules(model) if any(inner is module for inner in unit.modules())]
    if not units or not _is_sharded_now(units[-1]):
        yield
        return
    units[-1].unshard()
    try:
        yield
    finally:
        units[-1].reshard()


@contextmanager
def around_gathering(model: torch.nn.Module, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Call functions before and after each time that weights are gathered or freed in a pass inside the context."""
    handles = []
    try:
        for unit in _sharded_modules(model):
            handles += [
                unit.register_forward_pre_hook(lambda *_: before(), prepend=True),
                unit.register_forward_pre_hook(lambda *_: after()),
                unit.register_forward_hook(lambda *_: before(), prepend=True),
                unit.register_forward_hook(lambda *_: after()),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_sharded_by_layer(model: torch.nn.Module) -> bool:
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return any(is_unit(layer) for layers in lists for layer in layers)


def _is_sharded_now(unit: torch.nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight.data, DTensor) for weight in unit.parameters())


def _sharded_modules(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_unit(module)]
