"""Refuse scores that are not finite, by token and by the module that they come from."""

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import polars.selectors as cs
from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml.data.batching import Batch
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.models.forward import hidden_states
from tokenuq_ml.models.non_finite import first_non_finite_module, output_layer_name
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.sharding import is_sharded


class NonFiniteScores(NonFiniteError):
    """A token of a batch has a score that is not finite."""

    def __init__(self, message: str, example_id: str, batch: Batch):
        super().__init__(message)
        self.example_id, self.batch = example_id, batch


def require_finite_scores(rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
    """Return the rows of a batch's tokens.

    Raises:
        NonFiniteScores: a score is NaN or infinite.
    """
    is_finite = rows.select(cs.float().is_finite().all()).row(0)
    if all(is_finite):
        return rows
    name = rows.select(cs.float()).columns[is_finite.index(False)]
    first = rows.filter(~pl.col(name).is_finite())
    example_id, position, value = first.select("example_id", "position", name).row(0)
    message = (
        f"{example_id}: the {name} of the token at position {position} is {value} ({len(first)} of {len(rows)} tokens "
        "of its batch)"
    )
    raise NonFiniteScores(message, example_id, batch)


@contextmanager
def located(model: PreTrainedModel | PeftModel, numerics: Numerics) -> Iterator[None]:
    """Add to a `NonFiniteScores` the first module whose output is not finite, found by one more pass without dropout.

    Not of a sharded model, whose passes all processes would have to make.

    Enter this before the contexts that replace the model's forward passes.

    Args:
        model: In eval mode.
        numerics: Of the pass.
    """
    try:
        yield
    except NonFiniteScores as error:
        if is_sharded(model):
            said = f"{error}; the module that it comes from is not looked for in a sharded model"
            raise NonFiniteScores(said, error.example_id, error.batch) from None
        inputs = error.batch.to(numerics.device).model_inputs
        module = first_non_finite_module(model, lambda: hidden_states(model, inputs, numerics))
        origin = (
            f"the outputs of all modules are finite, but not the logits of {output_layer_name(model)}"
            if module is None
            else f"the first module whose output is not finite is {module}"
        )
        raise NonFiniteScores(f"{error}; {origin}", error.example_id, error.batch) from None


@contextmanager
def named_as_texts() -> Iterator[None]:
    """Name the text of a `NonFiniteScores` by its index, which is its example's id."""
    try:
        yield
    except NonFiniteScores as error:
        raise NonFiniteError(str(error).replace(error.example_id, f"text {int(error.example_id)}", 1)) from None
