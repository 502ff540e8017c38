"""What else is computed from the blocks of logits that a kernel computes anyway, at no head product.

Shapes: R of N response tokens, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor

Observer = Callable[[slice, Tensor], None]
"""`observe(rows, logits_RV)` is called for each block; `rows` are its tokens among the N. It must not keep or change
the logits."""


def together(*observers: Observer | None) -> Observer | None:
    """Return the function that calls all of them, in order; None if there is none."""
    given = [observe for observe in observers if observe is not None]
    if len(given) < 2:
        return given[0] if given else None

    def observe_all(rows: slice, logits_RV: Tensor) -> None:
        for observe in given:
            observe(rows, logits_RV)

    return observe_all
