"""Models in which a pass depends on the longest of its texts, and the length up to which it does not.

Rotary frequencies follow it with dynamic NTK scaling and with the long factors of Phi-3; the dynamic mask of Doge, too.
Beyond a length, they make a text's loss depend on the other texts of its batch, and with dynamic scaling also on the
batches before. Here a text has the frequencies of its own length: texts beyond the limit are passes of their own, and
what earlier passes have left is forgotten before each pass.

Shapes: B sequences, T positions.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError

_found: WeakKeyDictionary[PreTrainedModel, list[nn.Module]] = WeakKeyDictionary()


def shared_length(lm: PreTrainedModel) -> int | None:
    """Return the tokens up to which texts can share a pass; None if any texts can."""
    limits = [limit for module in _rotary_modules(lm) for limit in _limits(module)]
    # Beyond this window, Doge keeps the keys that score best in the padded length.
    limits += [lm.config.keep_window_size] if lm.config.model_type == "doge" else []
    return min(limits, default=None)


def forget_lengths(lm: PreTrainedModel) -> None:
    """Give the next pass the frequencies that a new model would have."""
    for module in _rotary_modules(lm):
        for prefix, kind in _kinds(module):
            before = f"{prefix}max_seq_len_cached"
            if "dynamic" in kind and getattr(module, before, module.max_seq_len_cached) != module.original_max_seq_len:
                original = getattr(module, f"{prefix}original_inv_freq")
                module.register_buffer(f"{prefix}inv_freq", original.to(_device(module, prefix)), persistent=False)
                setattr(module, before, module.original_max_seq_len)


def require_one_length(lm: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Refuse a batch whose texts would not have the frequencies of their own lengths.

    Raises:
        InputError: texts of several lengths share the pass, and one is beyond the limit.
    """
    limit = shared_length(lm)
    if limit is None or (lengths := _lengths(inputs)).numel() == 0:
        return
    if int(lengths.max()) > limit and int(lengths.min()) != int(lengths.max()):
        raise InputError(
            f"{type(lm).__name__} follows the longest text of a batch beyond {limit:,} tokens, so that a text's loss "
            f"would depend on the others; this batch has texts of {int(lengths.min()):,} to "
            f"{int(lengths.max()):,} tokens: use batches of one text (per_device_train_batch_size=1, with "
            "gradient_accumulation_steps for the batch), or shorter texts"
        )


def _rotary_modules(lm: PreTrainedModel) -> list[nn.Module]:
    if lm not in _found:
        _found[lm] = [module for module in lm.modules() if _kinds(module)]
    return _found[lm]


def _kinds(module: nn.Module) -> list[tuple[str, str]]:
    """Return the kinds of frequencies that follow the length, each with the prefix of its buffers' names."""
    kind = getattr(module, "rope_type", None)
    kinds = {f"{layers}_": one for layers, one in kind.items()} if isinstance(kind, dict) else {"": kind}
    return [(prefix, one) for prefix, one in kinds.items() if isinstance(one, str) and _follows_length(one)]


def _follows_length(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _limits(module: nn.Module) -> list[int]:
    limits = []
    for prefix, kind in _kinds(module):
        if kind == "longrope":
            parameters = module.config.rope_parameters
            parameters = parameters[prefix[:-1]] if prefix else parameters
            limits.append(int(parameters["original_max_position_embeddings"]))
        else:
            limits.append(int(module.original_max_seq_len))
    return limits


def _device(module: nn.Module, prefix: str) -> torch.device:
    return getattr(module, f"{prefix}inv_freq").device


def _lengths(inputs: Mapping[str, Any]) -> Tensor:
    """Return the tokens of each text of a pass; padding counts unless a mask says what it is."""
    positions_BT, mask_BT = inputs.get("position_ids"), inputs.get("attention_mask")
    if isinstance(mask_BT, Tensor) and mask_BT.dim() == 2:
        return mask_BT.sum(-1)
    if isinstance(positions_BT, Tensor) and positions_BT.dim() == 2:
        flat = positions_BT.flatten()
        starts = torch.cat([(flat == 0).nonzero()[:, 0], torch.tensor([len(flat)], device=flat.device)])
        return starts.diff()
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return torch.tensor([ids.shape[1]] * ids.shape[0])
