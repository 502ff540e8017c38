"""Which document each token of a user's own batch belongs to, also if several documents share a row.

Shapes: B sequences, T positions, N response tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenuq_ml.errors import InputError


def document_numbers(inputs: Mapping[str, Any], labels_BT: Tensor) -> Tensor | None:
    """Return `number_BT`, the number of each token's document in the batch; None if each row is one document.

    A document begins with each row, and where the inputs say so: a position that does not follow the one before
    (`position_ids`, by which transformers keeps packed documents apart), another sequence index (`seq_idx`), or a
    border of flash attention (`cu_seq_lens_q`). Padding is part of no document. If every row is one document, its
    number is that of the row. transformers' `find_packed_sequence_indices` numbers the documents of each row on its
    own, and counts padding.
    """
    begins_BT = _begins(inputs, labels_BT)
    if begins_BT is None:
        return None
    real_BT = _is_real(inputs, labels_BT)
    # A row of padding alone counts as a document, so that numbers stay those of the rows.
    real_BT[:, 0] |= ~real_BT.any(1)
    first_BT = real_BT & (real_BT.cumsum(1) == 1)
    return ((real_BT & begins_BT) | first_BT).flatten().cumsum(0).view_as(labels_BT) - 1


def check_ids(example_N: Tensor, ids: Sequence[str]) -> None:
    """Check that there is an id for each example that has a token.

    Raises:
        InputError: there are more examples than ids.
    """
    if ids and len(example_N) and (count := max(example_N.tolist()) + 1) > len(ids):
        raise InputError(
            f"example_ids returned {len(ids)} ids for a micro-batch of {count} examples; packed rows hold several "
            "documents, of which each needs an id"
        )


def _begins(inputs: Mapping[str, Any], labels_BT: Tensor) -> Tensor | None:
    """Return where a token begins a document within a row; None if the inputs do not say."""
    positions, index, borders = (inputs.get(name) for name in ("position_ids", "seq_idx", "cu_seq_lens_q"))
    begins_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    if isinstance(positions, Tensor):
        # Several kinds of positions of one token (Qwen2-VL) are [kinds, B, T]; the first is that of the text.
        positions_BT = (positions[0] if positions.dim() == 3 else positions).expand_as(labels_BT)
        begins_BT[:, 1:] = positions_BT.diff(dim=1) != 1
    elif isinstance(index, Tensor):
        begins_BT[:, 1:] = index.expand_as(labels_BT).diff(dim=1) != 0
    elif isinstance(borders, Tensor):
        # Borders count the tokens of all rows, one row after another.
        starts = borders.long()[borders < labels_BT.numel()]
        begins_BT.view(-1)[starts] = True
    else:
        return None
    return begins_BT


def _is_real(inputs: Mapping[str, Any], labels_BT: Tensor) -> Tensor:
    """Return where tokens are no padding."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool().clone()
    real_BT = torch.ones_like(labels_BT, dtype=torch.bool)
    if isinstance(positions, Tensor) and positions.dim() == 2:
        # Without a mask, collators pad position ids by zeros at the end of the row.
        zeros_from_BT = (positions.expand_as(labels_BT) == 0).flip(1).cumprod(1).flip(1).bool()
        real_BT &= ~zeros_from_BT
    return real_BT
