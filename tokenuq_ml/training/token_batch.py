"""What the objective asks of a micro-batch, and the micro-batch of a user's own Trainer.

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from tokenuq_ml.errors import InputError
from tokenuq_ml.training.document_borders import document_numbers
from tokenuq_ml.transfers import HostCopy, to_device

IGNORED = -100
"""The label of tokens that are not trained, as in transformers."""
TOKEN_WEIGHTS = "token_weights"
"""The column of a Trainer's inputs with the factor of each token's term in training, `[B, T]` like `labels`."""


class TokenBatch(Protocol):
    """A micro-batch: inputs of a forward pass, and its response tokens, by example, then position."""

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        ...

    @property
    def tokens(self) -> int:
        """N, the number of response tokens."""
        ...

    @property
    def label_N(self) -> Tensor:
        """Ids of the response tokens."""
        ...

    @property
    def example_N(self) -> Tensor:
        """int64: the index of each token's example in the micro-batch."""
        ...

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """Return `hidden_ND`, the states from which the response tokens are predicted."""
        ...


class LabelledInputs:
    """A `TokenBatch` made from a Trainer's inputs: tokens whose `labels` are not -100 are trained.

    Args:
        inputs: `labels`, the arguments of the model's forward pass, and `token_weights` if tokens have them.

    Raises:
        InputError: there are no labels, they are not one per token, or they are shifted already; or there are weights
            that are not one finite number of at least 0 per label.
    """

    def __init__(self, inputs: dict[str, Any]):
        _check_labels(inputs)
        self.model_inputs = {key: value for key, value in inputs.items() if key not in ("labels", TOKEN_WEIGHTS)}
        self._inputs, self.labels_BT = inputs, inputs["labels"]
        # Labels that a Trainer has moved to a GPU are waited for: nothing else says how many tokens there are.
        (response_BT,) = HostCopy(self.labels_BT[:, 1:] != IGNORED).wait()
        row_N, before_N = response_BT.nonzero(as_tuple=True)
        self._row_N = to_device(row_N, self.labels_BT.device)
        self._predicting_N = to_device(row_N * self.labels_BT.shape[1] + before_N, self.labels_BT.device)
        """Where the states are from which the response tokens are predicted, in `[B * T]`."""
        self.weight_N = _weights(inputs.get(TOKEN_WEIGHTS), self.labels_BT, self._predicting_N + 1)
        """float32: the factor of each response token's term in training; None if the inputs have none."""

    @property
    def tokens(self) -> int:
        """N, the number of response tokens."""
        return len(self._predicting_N)

    @property
    def label_N(self) -> Tensor:
        """Ids of the response tokens."""
        return self.labels_BT.flatten()[self._predicting_N + 1]

    @property
    def example_N(self) -> Tensor:
        """int64: the document of each token: its row, or one of several in the row (`document_borders.py`)."""
        number_BT = document_numbers(self._inputs, self.labels_BT)
        return self._row_N if number_BT is None else number_BT.flatten()[self._predicting_N + 1]

    @property
    def unit(self) -> str:
        """What `example_N` counts, for messages."""
        return "row" if document_numbers(self._inputs, self.labels_BT) is None else "document"

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """Return `hidden_ND`, the states from which the response tokens are predicted."""
        return hidden_BTD.flatten(0, 1).index_select(0, self._predicting_N)


def _check_labels(inputs: Mapping[str, Any]) -> None:
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    if not isinstance(labels, Tensor):
        raise InputError(
            f"the batch has no `labels` (it has {', '.join(inputs)}), so no token would be trained; let the data "
            "collator return them, e.g. DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )
    if "shift_labels" in inputs:
        raise InputError(
            "the batch has `shift_labels`, which are not read; let the data collator return `labels` alone, one per "
            "token and not shifted"
        )
    if labels.ndim != 2 or (isinstance(ids, Tensor) and ids.shape != labels.shape):
        shape = f" [batch, tokens], as input_ids {list(ids.shape)}" if isinstance(ids, Tensor) else " [batch, tokens]"
        raise InputError(f"`labels` have the shape {list(labels.shape)}; they need one label per token,{shape}")


def _weights(weights_BT: Any, labels_BT: Tensor, token_N: Tensor) -> Tensor | None:
    """Return `weight_N`, aligned with the labels: position t weighs the token t, and the first one has no term.

    Args:
        weights_BT: as given; None if there are none.
        labels_BT: the labels.
        token_N: where the response tokens are, in `[B * T]`.
    """
    if weights_BT is None:
        return None
    shape = tuple(weights_BT.shape) if isinstance(weights_BT, Tensor) else type(weights_BT).__name__
    if shape != tuple(labels_BT.shape):
        raise InputError(
            f"{TOKEN_WEIGHTS} is {shape}, and labels are {tuple(labels_BT.shape)}; give one weight per label, padded "
            "as labels are"
        )
    weight_N = weights_BT.flatten()[token_N].float()
    if not bool(((weight_N >= 0) & weight_N.isfinite()).all()):
        raise InputError(f"{TOKEN_WEIGHTS} holds a weight below 0, or one that is not finite; correct the dataset")
    return weight_N
