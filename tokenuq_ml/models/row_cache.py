"""A key-value cache whose rows leave when their answers end, written in place.

Transformers' `DynamicCache` copies all keys and values in each step and keeps the rows of ended answers; its
`StaticCache` attends to the columns of the longest possible answer in each step.

Shapes: M rows, G key heads, T columns, F features of a head.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

COLUMNS = 128
"""Columns that are reserved at a time."""


def cache_argument(forward: Callable) -> str:
    """Return how a forward pass calls its cache: `cache`, or `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_in(arguments: Mapping[str, Any]) -> Cache | None:
    """Return the cache among the keyword arguments of a layer, whatever its name is; None if there is none."""
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


class RowCache(Cache):
    """Keys and values of every layer of a model in which each layer attends to all earlier tokens."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """Return an empty cache for the model; None if a layer keeps something else: windows, states, indices."""
        layers = DynamicCache(config=model.config).layers
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return cls(layers=[_RowLayer() for _ in layers])

    def replace_row(self, row: int, by: int) -> None:
        """Copy row `by` to the place of `row`."""
        for layer in self.layers:
            layer.replace_row(row, by)

    def keep_first(self, rows: int) -> None:
        """Keep the first rows only."""
        for layer in self.layers:
            layer.keep_first(rows)


class _RowLayer(DynamicLayer):
    """Keys and values of one layer: views of memory with columns in reserve."""

    def __init__(self):
        super().__init__()
        self._memory: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write new columns; return all keys and values."""
        rows, start = key_states.shape[0], self.get_seq_length()
        end = start + key_states.shape[2]
        if not self._memory or end > self._memory[0].shape[2]:
            self._reserve(key_states, value_states, end + COLUMNS)
        for memory_MGTF, new_MGTF in zip(self._memory, (key_states, value_states), strict=True):
            memory_MGTF[:rows, :, start:end] = new_MGTF
        self.keys, self.values = (memory_MGTF[:rows, :, :end] for memory_MGTF in self._memory)
        return self.keys, self.values

    def _reserve(self, key_states: Tensor, value_states: Tensor, columns: int) -> None:
        held, memory = (self.keys, self.values) if self.is_initialized else (), []
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for number, new_MGTF in enumerate((key_states, value_states)):
            rows, heads, _, features = new_MGTF.shape
            memory.append(new_MGTF.new_empty(rows, heads, columns, features))
            if held:
                memory[-1][:, :, : held[number].shape[2]] = held[number]
        self._memory = tuple(memory)

    def replace_row(self, row: int, by: int) -> None:
        for states_MGTF in (self.keys, self.values):
            states_MGTF[row] = states_MGTF[by]

    def keep_first(self, rows: int) -> None:
        self.keys, self.values = self.keys[:rows], self.values[:rows]
