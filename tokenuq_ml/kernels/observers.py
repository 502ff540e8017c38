"""What else is computed from the blocks of logits that a kernel computes anyway, at no head product.

Shapes: R of N response tokens, C of them in one product, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from tokenuq_ml.kernels import fused
from tokenuq_ml.kernels.fused import RowStatistics
from tokenuq_ml.kernels.head import Head, blocks

Observer = Callable[[slice, Tensor], None]
"""`observe(rows, logits_RV)` is called for each block; `rows` are its tokens among the N. It must not keep or change
the logits."""


@runtime_checkable
class RowObserver(Protocol):
    """An observer that also takes fused statistics, where these are computed, in place of the logits."""

    def __call__(self, rows: slice, logits_RV: Tensor) -> None:
        """Observe a block by its logits."""
        ...

    def observe_rows(self, rows: slice, statistics: RowStatistics) -> None:
        """Observe the rows of a product by their statistics."""
        ...


class _Together:
    """Several observers as one."""

    def __init__(self, observers: list[Observer]):
        self.observers = observers

    def __call__(self, rows: slice, logits_RV: Tensor) -> None:
        for observe in self.observers:
            observe(rows, logits_RV)


def together(*observers: Observer | None) -> Observer | None:
    """Return the function that calls all of them, in order; None if there is none."""
    given = [observe for observe in observers if observe is not None]
    if len(given) < 2:
        return given[0] if given else None
    return _Together(given)


def observed_statistics(
    product_CV: Tensor, chunk: slice, head: Head, label_C: Tensor, observe: Observer | None
) -> RowStatistics:
    """Return the fused statistics of a product, and show its rows to the observers.

    Logits are computed only for observers that read them.

    Args:
        product_CV: product with the head.
        chunk: which of the N tokens its rows are.
        head: the output head.
        label_C: ids of the tokens.
        observe: what `together` returned.
    """
    statistics = fused.row_statistics(product_CV, head, label_C)
    from_logits = []
    for one in _each(observe):
        if isinstance(one, RowObserver):
            one.observe_rows(chunk, statistics)
        else:
            from_logits.append(one)
    if from_logits:
        for block in blocks(len(product_CV), head):
            logits_RV = head.finish(product_CV[block])
            for one in from_logits:
                one(slice(chunk.start + block.start, chunk.start + block.stop), logits_RV)
    return statistics


def _each(observe: Observer | None) -> Iterator[Observer]:
    if isinstance(observe, _Together):
        for one in observe.observers:
            yield from _each(one)
    elif observe is not None:
        yield observe
