"""The column `token_weights` of a user's own dataset: kept by the Trainer up to the loss, or missed with an error."""

from collections.abc import Mapping
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.training.token_batch import TOKEN_WEIGHTS, LabelledInputs


class TokenWeightColumn:
    """Part of `TokenObjective` that carries `token_weights` from the train dataset to the micro-batches.

    Trainer drops columns that are no arguments of the model's forward pass, and collators those that they do not know;
    both without an error.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        # Before the Trainer is made: TRL's packing makes another dataset, without the column.
        given = (*args, kwargs.get("train_dataset"))
        self._was_given_weights = any(TOKEN_WEIGHTS in _columns(dataset) for dataset in given)
        super().__init__(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        # Private in Trainer, but the only place that decides which columns of a dataset are kept.
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if TOKEN_WEIGHTS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, TOKEN_WEIGHTS]

    def labelled_inputs(self, inputs: dict[str, Any]) -> LabelledInputs:
        """Return the micro-batch made from the collator's `inputs`.

        Raises:
            InputError: the dataset has token weights, and the collator or packing has dropped them.
        """
        if TOKEN_WEIGHTS not in inputs:
            prepared = TOKEN_WEIGHTS in _columns(self.train_dataset)  # type: ignore[attr-defined]
            if prepared or self._was_given_weights:
                collator = f"the data collator ({type(self.data_collator).__name__})"  # type: ignore[attr-defined]
                raise InputError(
                    f"the train dataset has the column {TOKEN_WEIGHTS!r}, which {collator if prepared else 'packing'} "
                    "drops; pass a data_collator that pads it as `labels` (with 0), and do not pack, or remove the "
                    "column"
                )
        return LabelledInputs(inputs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does, without the weights."""
        own = {key: value for key, value in inputs.items() if key != TOKEN_WEIGHTS}
        return super().prediction_step(model, own, *args, **kwargs)  # type: ignore[misc]


def _columns(dataset: Any) -> tuple[str, ...]:
    """Return the columns of a dataset, or the keys of its first row; empty if they cannot be told."""
    if names := getattr(dataset, "column_names", None):
        return tuple(names)
    first = dataset[0] if isinstance(dataset, list | tuple) and dataset else None
    return tuple(first) if isinstance(first, Mapping) else ()
