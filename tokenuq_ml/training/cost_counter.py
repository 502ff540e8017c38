"""What the training steps of this process cost: the counts behind a `CostRecord`."""

from collections import Counter
from collections.abc import Callable

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.costs.record import CostRecord, Seconds
from tokenuq_ml.data.batching import Batch
from tokenuq_ml.kernels.training_loss import TrainingLoss


class CostCounter:
    """Counter of sequences and tokens by treatment, over the micro-batches of this process."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._steps: set[int] = set()
        self._micro_batches = 0

    def add(self, batch: Batch, out: TrainingLoss, step: int) -> None:
        """Count a micro-batch of an optimiser step."""
        counts, lengths = self._counts, [len(example.input_ids) for example in batch.examples]
        self._steps.add(step)
        self._micro_batches += 1
        counts["sequences"] += len(lengths)
        counts["tokens"] += sum(lengths)
        counts["padded_tokens"] += batch.input_ids_BT.numel()
        counts["response_tokens"] += len(out.loss_N)
        is_mle_N, is_distilled_N = (weight_N != 0 for weight_N in out.weights)
        counts["mle_tokens"] += int(is_mle_N.sum())
        counts["distilled_tokens"] += int(is_distilled_N.sum())
        counts["summed_tokens"] += int((is_mle_N & is_distilled_N).sum())
        # A packed row attends only within its sequences, a padded one over its full length.
        spans = lengths if batch.position_ids_BT is not None else [batch.input_ids_BT.shape[1]] * len(lengths)
        counts["attended"] += sum(span**2 for span in spans) / 2

    def over_ranks(self, gather: Callable[[list], list]) -> "CostCounter":
        """Return the counts of all ranks together.

        Args:
            gather: concatenates the lists of all ranks.
        """
        together = CostCounter()
        for counts, steps, micro_batches in gather([(self._counts, self._steps, self._micro_batches)]):
            together._counts.update(counts)
            together._steps |= steps
            together._micro_batches += micro_batches
        return together

    def record(
        self,
        ablation: AblationSpec,
        teacher_form: str,
        lora_rank: int | None,
        selection_passes: int,
        seconds: dict[str, float],
    ) -> CostRecord | None:
        """Return the record of the steps that were counted; None if there were none.

        Args:
            ablation: how the student was trained.
            teacher_form: `TeacherSource.form` of the teacher.
            lora_rank: the adapter's rank as allocated; None: the model itself was trained.
            selection_passes: forward passes made only to select.
            seconds: by phase, as `PhaseClock.seconds` returns them.
        """
        if not self._steps:
            return None
        return CostRecord(
            **self._counts,
            steps=len(self._steps),
            selection=ablation.selection_kind,
            selection_needs_loss=ablation.needs_student_losses,
            selection_needs_divergence=ablation.needs_student_divergence,
            selection_passes=selection_passes / self._micro_batches,
            teacher=teacher_form if ablation.distillation else "none",
            lora_rank=lora_rank or 0,
            trains_base=lora_rank is None,
            seconds=Seconds(**{name: 0.0 for name in Seconds.model_fields} | seconds),
        )
