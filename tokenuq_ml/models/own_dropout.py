"""Monte-Carlo dropout of a model that has no adapter: at the places where its architecture drops features.

BALD is then about all of the model's weights. Each dropout module that the model calls with features of all positions
gets keyed masks at the study's rate, whatever rate its configuration has. Attention probabilities are dropped apart
from that (`attention_dropout.py`); most recent architectures drop nothing else.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.keyed_masks import KeyedDropout, KeyedMasks
from tokenuq_ml.models.output_layer import own_logits
from tokenuq_ml.models.placement import device_of
from tokenuq_ml.seeding import probe_generator

SHAPE_BT = (2, 9)
"""Sequences and positions of the pass that shows what is called."""


@torch.no_grad()
def dropouts_of_features(model: PreTrainedModel) -> dict[str, int]:
    """Return path and features of each dropout module that gets the features of all positions, `[B, T, F]`.

    Takes a forward pass over two short texts. Dropout of attention probabilities is left out.
    """
    found: dict[str, int] = {}

    def note(path: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if inputs and inputs[0].dim() == 3 and inputs[0].shape[:2] == SHAPE_BT:
            found[path] = inputs[0].shape[-1]

    rows = model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.randint(rows, SHAPE_BT, generator=probe_generator()).to(device_of(model))
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Dropout):
                stack.callback(module.register_forward_hook(partial(note, path)).remove)
        stack.enter_context(evaluation_mode(model))
        own_logits(model, {"input_ids": ids_BT})
    return found


def require_dropout(model: PreTrainedModel, drops_attention: bool) -> dict[str, int]:
    """Return what `dropouts_of_features` finds.

    Raises:
        InputError: nothing would be dropped, so that BALD would be 0 everywhere.
    """
    found = dropouts_of_features(model)
    if not found and not drops_attention:
        raise InputError(
            f"BALD of a model without an adapter samples the model's own dropout, and {type(model).__name__} has none, "
            "so it would be 0 everywhere; set `attention_dropout` of `uncertainty` above 0, or train an adapter"
        )
    return found


@contextmanager
def keyed_dropout(model: PreTrainedModel, masks: KeyedMasks, dropouts: dict[str, int]) -> Iterator[None]:
    """Replace dropout modules by keyed ones inside the context.

    Args:
        model: in eval mode.
        masks: of the passes.
        dropouts: what `require_dropout` returns.
    """
    with ExitStack() as stack:
        for path, features in dropouts.items():
            outer, _, name = path.rpartition(".")
            parent = model.get_submodule(outer)
            stack.callback(setattr, parent, name, getattr(parent, name))
            setattr(parent, name, KeyedDropout(features, masks).eval())
        yield
