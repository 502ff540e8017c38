"""Checks of the inputs of a forward pass: their length, and whether texts of several lengths may share it."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.models.dynamic_rope import forget_lengths, require_one_length
from tokenuq_ml.models.placement import check_gradients
from tokenuq_ml.models.positions import most_positions, require_positions

_limits: WeakKeyDictionary[PreTrainedModel, dict[str, Any] | None] = WeakKeyDictionary()
"""The configuration of models whose positions end; None for others."""


@torch.compiler.disable
def start_pass(lm: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Check the inputs of a pass, and forget what earlier passes have left in the model.

    Raises:
        InputError: a text is longer than the model's positions, the texts cannot share a pass, or the pass would give
            no gradients.
    """
    if lm not in _limits:
        config = lm.config.get_text_config().to_dict()
        _limits[lm] = config if most_positions(config) is not None else None
    config = _limits[lm]
    if config is not None:
        remedy = "cut texts at {limit} tokens (max_length), or use a model with more positions"
        require_positions(_longest(inputs, most_positions(config)), config, "a text of the batch", remedy)
    if lm.training and torch.is_grad_enabled() and getattr(lm, "is_quantized", False):
        check_gradients(lm)
    require_one_length(lm, inputs)
    forget_lengths(lm)


def _longest(inputs: Mapping[str, Any], limit: int | None) -> int:
    """Return the positions that the pass needs, or a number above them that is still within the limit."""
    length = int(inputs.get("input_ids", inputs.get("inputs_embeds")).shape[1])
    positions_BT = inputs.get("position_ids")
    # Positions of packed texts are fewer than the row's; to read them, the host would wait for a GPU.
    if isinstance(positions_BT, Tensor) and (limit is None or length > limit):
        return int(positions_BT.max()) + 1
    return length
