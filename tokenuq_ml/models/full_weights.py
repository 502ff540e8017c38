"""Models that were trained without an adapter: complete sets of weights of one model, switched as adapters are.

A model is loaded from its base's folder, and gets the weights of a trained one by name. The base model's own weights,
which the name None stands for, are read when they are first asked for, so that a pass under one set holds one set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenuq_ml.tensor_digest import joined_digest, tensors_digest

Weights = dict[str, Tensor]


@dataclass
class _Sets:
    """The sets of weights of one model."""

    base: str
    """Folder of the base model."""
    dtype: torch.dtype
    """In which sets are read, also while passes in a wider dtype have widened the one that is in the model."""
    active: str | None
    """Name of the set that is in the model."""
    idle: dict[str | None, Weights] = field(default_factory=dict)
    """The sets that are in memory and not in the model."""


_sets: WeakKeyDictionary[PreTrainedModel, _Sets] = WeakKeyDictionary()


def is_full_model(folder: str | Path) -> bool:
    """Return whether a folder of trained weights holds a complete model, and not an adapter."""
    return Path(folder, "config.json").exists() and not Path(folder, "adapter_config.json").exists()


def has_full_weights(model: object) -> bool:
    """Return whether the model has the weights of a trained one by name (`attach_weights`)."""
    return isinstance(model, PreTrainedModel) and model in _sets


def attach_weights(model: PreTrainedModel, folder: str | Path, name: str) -> PreTrainedModel:
    """Add a set of weights under a name; the first one takes the place of the base model's.

    Args:
        model: as loaded from the base model's folder; frozen here.
        folder: what `save_weights` wrote.
        name: of the set.
    """
    if model in _sets:
        _sets[model].idle[name] = _read(folder, model)
        return model
    model.requires_grad_(False)
    _sets[model] = _Sets(model.name_or_path, model.dtype, name)
    _put(model, _read(folder, model))
    return model.eval()


def put_weights(model: PreTrainedModel, name: str, folder: str | Path | None) -> None:
    """Replace a set of weights by that of another folder; None: by the base model's."""
    sets = _sets[model]
    weights = _read(sets.base if folder is None else folder, model)
    if name == sets.active:
        _put(model, weights)
    else:
        sets.idle[name] = weights


@contextmanager
def use_weights(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Give the model another set of weights inside the context; None: the base model's."""
    sets = _sets[model]
    before = sets.active
    if name == before:
        yield
        return
    if name is None and None not in sets.idle:
        sets.idle[None] = _read(sets.base, model)
    sets.idle[before], sets.active = _put(model, sets.idle.pop(name)), name
    try:
        yield
    finally:
        sets.idle[name], sets.active = _put(model, sets.idle.pop(before)), before


def save_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Save a model in the format of transformers, in the dtype of its weights."""
    model.save_pretrained(folder)


def weights_digest(folder: str | Path) -> str:
    """Return the content hash of a complete model's tensors."""
    return joined_digest(*(tensors_digest(path) for path in sorted(Path(folder).glob("*.safetensors"))))


def _read(folder: str | Path, model: PreTrainedModel) -> Weights:
    """Return the weights of a folder by the names that they have in the model, on its device and in its dtype.

    Not from the files themselves: transformers stores some architectures under other names.
    """
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=_sets[model].dtype)
    return {name: parameter.data.to(model.device) for name, parameter in stored.named_parameters()}


def _put(model: PreTrainedModel, weights: Weights) -> Weights:
    """Give the model a set of weights, and return the one that it had."""
    before: Weights = {}
    for name, parameter in model.named_parameters():
        before[name] = parameter.data
        parameter.data = weights[name].to(parameter.dtype)
    return before
