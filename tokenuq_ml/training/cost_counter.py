"""What the training steps of this process cost: the counts behind a `CostRecord`."""

from collections import Counter
from collections.abc import Callable

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.costs.record import CostRecord, Seconds
from tokenuq_ml.data.batching import Batch
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.transfers import HostCopy


class CostCounter:
    """Counter of sequences and tokens by treatment, over the micro-batches of this process."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._steps: set[int] = set()
        self._micro_batches = 0
        self._pending: list[HostCopy] = []
        """Weights of the last step's micro-batches, which are read when the next step begins."""

    def add(self, batch: Batch, out: TrainingLoss, step: int) -> None:
        """Count a micro-batch of an optimiser step."""
        counts, lengths = self._counts, [len(example.input_ids) for example in batch.examples]
        if step not in self._steps:
            self._read()
        self._steps.add(step)
        self._micro_batches += 1
        counts["sequences"] += len(lengths)
        counts["tokens"] += sum(lengths)
        counts["padded_tokens"] += batch.input_ids_BT.numel()
        counts["response_tokens"] += len(out.loss_N)
        self._pending.append(HostCopy(*out.weights))
        # A packed row attends only within its sequences, a padded one over its full length.
        spans = lengths if batch.position_ids_BT is not None else [batch.input_ids_BT.shape[1]] * len(lengths)
        counts["attended"] += sum(span**2 for span in spans) / 2

    def _read(self) -> None:
        """Count the tokens of micro-batches whose weights were on their way to the host."""
        pending, self._pending = self._pending, []
        for copy in pending:
            is_mle_N, is_distilled_N = (weight_N != 0 for weight_N in copy.wait())
            self._counts["mle_tokens"] += int(is_mle_N.sum())
            self._counts["distilled_tokens"] += int(is_distilled_N.sum())
            self._counts["summed_tokens"] += int((is_mle_N & is_distilled_N).sum())

    def over_ranks(self, gather: Callable[[list], list]) -> "CostCounter":
        """Return the counts of all ranks together.

        Args:
            gather: concatenates the lists of all ranks.
        """
        self._read()
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
        recomputes: bool = False,
    ) -> CostRecord | None:
        """Return the record of the steps that were counted; None if there were none.

        Args:
            ablation: how the student was trained.
            teacher_form: `TeacherSource.form` of the teacher.
            lora_rank: the adapter's rank as allocated; None: the model itself was trained.
            selection_passes: forward passes made only to select.
            seconds: by phase, as `PhaseClock.seconds` returns them.
            recomputes: whether the backward pass computed layers again.
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
            recomputes=recomputes,
            seconds=Seconds(**{name: 0.0 for name in Seconds.model_fields} | seconds),
        )
