"""Dispatch modes that see what a computation asks of a device: launches, and what the host would wait for."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_LAUNCH = {
    *("view", "_unsafe_view", "t", "slice", "detach", "unsqueeze", "squeeze", "select", "expand", "alias", "permute"),
    *("transpose", "as_strided", "split", "split_with_sizes", "reshape", "unbind", "lift_fresh", "device"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
}
"""Operators that make a view or memory."""

WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "equal"),
}
"""Operators whose result, or its shape, the host has to read."""


class Launches(TorchDispatchMode):
    """Counts operators that launch work, by name; a custom operator is one."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name not in WITHOUT_LAUNCH:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Collects the operators for whose result a host waits, and an index by a mask, which is a `nonzero`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            self.names.append(f"{name}{' by a mask' if by_mask else ''}")
        return function(*args, **(kwargs or {}))
