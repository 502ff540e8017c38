"""Dispatch modes that see what a computation asks of a device: launches, and what the host would wait for."""

import traceback
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


def _caller() -> str:
    """Return the innermost function of tokenuq_ml that is running, as `file.py:function`."""
    frames = [frame for frame in traceback.extract_stack() if "/tokenuq_ml/" in frame.filename]
    return f"{frames[-1].filename.rsplit('/', 1)[1]}:{frames[-1].name}" if frames else "another package"


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
    """Collects the operators for whose result a host waits, and an index by a mask, which is a `nonzero`.

    With the function that asks: "nonzero in file.py:function".
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        by_mask = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            self.names.append(f"{name}{' by a mask' if by_mask else ''} in {_caller()}")
        return function(*args, **(kwargs or {}))
