"""What the objective asks of a micro-batch, and the micro-batch of a user's own Trainer.

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from typing import Any, Protocol

from torch import Tensor

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
    """A `TokenBatch` made from a Trainer's inputs: tokens whose `labels` are not -100 are trained."""

    def __init__(self, inputs: dict[str, Any]):
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
