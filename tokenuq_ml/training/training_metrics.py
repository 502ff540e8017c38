"""What a training with the objective adds to the Trainer's log.

The names of TRL's `SFTTrainer`, with its meanings (trl 1.16, `SFTTrainer.compute_loss` and `log`):

| name | meaning |
|---|---|
| `entropy` | mean entropy of the response tokens in nats |
| `mean_token_accuracy` | share of response tokens whose label is the likeliest token |
| `num_tokens` | tokens that training has processed so far, prompts included, padding not |
| `aux_loss` | load-balancing loss of a mixture of experts |

The first two and the last are means over ranks in each micro-batch, then means over the micro-batches since the last
row of the log. They count response tokens whose logits the step computes anyway: all of them if all are trained or
distilled, or if selection reads the student's losses; else those that are selected. Of the objective:

| name | meaning |
|---|---|
| `selected_share` | share of response tokens since the last row that were selected |
| `distill_loss` | mean divergence of the distilled tokens since the last row, in nats |

Shapes: N response tokens of a micro-batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import accumulation_dtype
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.training.token_batch import TokenBatch

Number = Tensor | float


class TrainingMetrics:
    """Means and sums over the micro-batches, kept on the training device; only `take` waits for it.

    Every rank must add the same names, in the same order, for each micro-batch.

    Args:
        device: of the sums.
        gather: stacks tensors `[1, ...]` of all ranks to `[ranks, ...]`; default: there is one rank.
    """

    def __init__(self, device: str | torch.device = "cpu", gather: Callable[[Tensor], Tensor] = lambda own: own):
        # float64 counts tokens exactly; Apple's GPUs do not have it.
        self.device, self.dtype = device, torch.float32 if "mps" in str(device) else torch.float64
        self.gather = gather
        self._kinds: dict[str, str] = {}
        self._step: list[dict[str, Tensor]] = []
        """Of each micro-batch of the step: name -> `[2]`, sum and count on this rank."""
        self._sums: dict[str, Tensor] = {}
        """Name -> `[2]`, sum and count over all ranks and micro-batches since the last `take`."""

    def start_micro_batch(self) -> None:
        """Begin a micro-batch; what is added from now on belongs to it."""
        self._step.append({})

    def add(self, name: str, total: Number, count: Number = 1.0) -> None:
        """Add the micro-batch's mean, `total / count` over all ranks, to a mean over micro-batches, as TRL does.

        A micro-batch in which no rank counts anything is left out. TRL takes it for 0.
        """
        self._put("mean", name, total, count)

    def pool(self, name: str, total: Number, count: Number) -> None:
        """Add to a mean over all that is counted, whichever the micro-batch."""
        self._put("pool", name, total, count)

    def count(self, name: str, amount: Number) -> None:
        """Add to a sum that is never reset."""
        self._put("count", name, amount, 0.0)

    def _put(self, kind: str, name: str, *pair: Number) -> None:
        self._kinds[name] = kind
        self._step[-1][name] = torch.stack([self._tensor(value) for value in pair])

    def _tensor(self, value: Number) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, self.dtype)
        return torch.full((), value, device=self.device, dtype=self.dtype)

    def end_step(self) -> None:
        """Add the micro-batches of an optimiser step to the sums; gathers once from the ranks."""
        step, self._step = [values for values in self._step if values], []
        if not step:
            return
        own = torch.stack([torch.stack(list(values.values())) for values in step])
        over_ranks = self.gather(own[None]).sum(0)
        for name, pairs in zip(step[0], over_ranks.unbind(1), strict=True):
            if self._kinds[name] == "mean":
                total, count = pairs.unbind(1)
                mean = torch.where(count > 0, total / count.clamp(min=1), 0.0)
                pairs = torch.stack([mean, (count > 0).to(mean)], 1)
            self._sums[name] = pairs.sum(0) + self._sums.get(name, 0.0)

    def take(self) -> dict[str, float]:
        """Return the values since the last call and forget them; empty if there are none."""
        if not any(self._kinds[name] != "count" for name in self._sums):
            return {}
        rows = torch.stack(list(self._sums.values())).tolist()
        values = {name: self._value(name, *row) for name, row in zip(self._sums, rows, strict=True)}
        self._sums = {name: pair for name, pair in self._sums.items() if self._kinds[name] == "count"}
        return {name: value for name, value in values.items() if value is not None}

    def _value(self, name: str, total: float, count: float) -> float | None:
        """Return a sum, or a mean; None if nothing was counted."""
        if self._kinds[name] == "count":
            return total
        return total / count if count else None

    def total(self, name: str) -> float:
        """Return a sum that `count` adds to; 0 if there is none."""
        return float(self._sums[name][0]) if name in self._sums else 0.0


class LoggedMetrics:
    """Mixin of `TokenObjective`: adds the metrics of its training steps to the Trainer's log."""

    logs_metrics = True
    """Whether the log has more than the Trainer's own figures."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        gathers = [self.accelerator.gather] if self.accelerator.num_processes > 1 else []
        self.training_metrics = TrainingMetrics(self.args.device, *gathers)
        """What the next row of the log adds. A term of the loss adds its own by `add`."""

    def new_statistics(self, label_N: Tensor, states: Tensor) -> TokenStatistics | None:
        """Return what collects the statistics of a micro-batch's tokens; None if the log does not have them."""
        return TokenStatistics(label_N, accumulation_dtype(states)) if self.logs_metrics else None

    def add_metrics(self, batch: TokenBatch, out: TrainingLoss, statistics: TokenStatistics | None) -> None:
        """Add a micro-batch to the metrics."""
        if statistics is None:
            return
        metrics, counted = self.training_metrics, statistics.counted_N.sum()
        metrics.add("entropy", statistics.entropy_N.sum(), counted)
        metrics.add("mean_token_accuracy", statistics.is_top1_N.sum(), counted)
        metrics.count("num_tokens", input_tokens(batch.model_inputs))
        metrics.pool("selected_share", out.selected_N.sum(), float(len(out.selected_N)))
        if self.ablation.distillation is not None:
            metrics.pool("distill_loss", out.divergence_N.sum(), (out.weights.distill_N > 0).sum())

    # What Trainer calls.

    def training_step(self, *args, **kwargs):
        """Run a micro-batch; after the last one of the step, add the step to the metrics."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.training_metrics.end_step()
        return loss

    def log(self, logs, *args, **kwargs):
        """Log what the Trainer does, and in training the metrics since the last row."""
        if self.model.training:
            logs.update(self.training_metrics.take())
        return super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Evaluate as the Trainer does."""
        # TRL logs the trained tokens with an evaluation too, and counts them where this objective replaces it.
        if self.logs_metrics and hasattr(self, "_total_train_tokens"):
            self._total_train_tokens = self.training_metrics.total("num_tokens")
        return super().evaluate(*args, **kwargs)


def input_tokens(inputs: dict[str, Any]) -> Number:
    """Return the tokens of a micro-batch, prompts included, padding not; counted as TRL does."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum()
    ids = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    return float(ids.shape[0] * ids.shape[1])
