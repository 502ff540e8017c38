"""What a subclass of `TokenObjective` may override: the micro-batch, what is known of its tokens, and the record.

Shapes: N response tokens of a micro-batch.
"""

from typing import Any

from torch import Tensor

from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.training.token_batch import TokenBatch
from tokenuq_ml.training.weight_column import TokenWeightColumn


class ObjectiveHooks(TokenWeightColumn):
    """Part of `TokenObjective`: its hooks, for data as transformers' Trainer has them."""

    def token_batch(self, inputs: dict[str, Any]) -> TokenBatch:
        """Return the micro-batch made from the data collator's `inputs`."""
        return self.labelled_inputs(inputs)

    def token_columns(self, batch: Any) -> dict[str, Tensor]:
        """Return the columns of the teacher's tables that the ablation reads: `[N]` by names of `registry.COLUMNS`."""
        return {}

    def true_distributions(self, batch: Any) -> TrueDistributions | None:
        """Return the distributions that generated the micro-batch's tokens, `[N]`; None if they are not known."""
        return None

    def example_ids(self, batch: Any) -> tuple[str, ...]:
        """Return the ids of the micro-batch's examples, by `batch.example_N`; empty if they have none."""
        return ()

    def data_weights(self, batch: Any) -> Tensor | None:
        """Return `weight_N`, factors of the tokens' terms of the objective (`token_weights`); None if all are 1."""
        return getattr(batch, "weight_N", None)

    teacher_mean = float("nan")
    """Mean of the teacher's loss over the train split in nats, for the threshold `teacher_mean`."""

    def static_mask(self, batch: Any) -> Tensor | None:
        """Return `mask_N` if the selection was decided before training."""
        return None

    applied_keys: frozenset[str] = frozenset()
    """Keys of an ablation that the subclass applies to the adapter itself: `lora`, `rank_growth`."""

    records_losses = False
    """Whether `record` reads the loss of every token, including those that are not trained."""

    def record(self, batch: Any, out: TrainingLoss, tokens_of_step: int) -> None:
        """Record what was computed for a micro-batch; called for each forward pass, of which it has one.

        Args:
            batch: what `token_batch` returned.
            out: losses, divergences, weights and mask of its N tokens.
            tokens_of_step: response tokens of the optimiser batch.
        """
