"""What the objective asks of a micro-batch, and the micro-batch of a user's own Trainer.

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from tokenuq_ml.errors import InputError

IGNORED = -100
"""The label of tokens that are not trained, as in transformers."""


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

    Raises:
        InputError: there are no labels, they are not one per token, or they are shifted already.
    """

    def __init__(self, inputs: dict[str, Any]):
        _check_labels(inputs)
        self.model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        self.labels_BT = inputs["labels"]
        self._response_BT = self.labels_BT[:, 1:] != IGNORED

    @property
    def tokens(self) -> int:
        """N, the number of response tokens."""
        return int(self._response_BT.sum())

    @property
    def label_N(self) -> Tensor:
        """Ids of the response tokens."""
        return self.labels_BT[:, 1:][self._response_BT]

    @property
    def example_N(self) -> Tensor:
        """int64: the row of each token."""
        return self._response_BT.nonzero()[:, 0]

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """Return `hidden_ND`, the states from which the response tokens are predicted."""
        return hidden_BTD[:, :-1][self._response_BT]


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
