"""What an ablation changes in the cost of a training step: shares of tokens, selection passes, the teacher's form."""

from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.costs.flops import Teacher


def ablation_step(ablation: AblationSpec, train: TrainSpec, cached: bool, only_states: bool) -> dict:
    """Return the fields of `Step` that the ablation decides.

    Args:
        ablation: which tokens are selected, and how they and the others are trained.
        train: the budget; where a step has several micro-batches, selection takes a pass of its own.
        cached: whether the baseline teacher's states are cached.
        only_states: whether there are no mean embeddings: the model soft-caps its logits, or students train their head.
    """
    share = ablation.select.expected_share
    parts = ((share, ablation.selected), (1 - share, ablation.rest))
    distilled = sum(part for part, objective in parts if objective.distill is not None)
    summed = sum(part for part, objective in parts if objective.is_sum)
    idle = sum(part for part, objective in parts if objective.kind == "none")
    together = ablation.decides_together(ablation.select.is_decided_before_training)
    several = (train.micro_batch_size or train.batch_size) < train.batch_size
    return {
        "mle_share": max(0.0, 1 - distilled - idle + summed),
        "distilled_share": distilled,
        "summed_share": summed,
        "selection_needs_loss": ablation.needs_student_losses,
        "selection_needs_divergence": ablation.needs_student_divergence,
        "selection_passes": float(ablation.needs_student_losses and together and several),
        "teacher": _teacher_form(ablation, cached, only_states) if distilled else "none",
    }


def _teacher_form(ablation: AblationSpec, cached: bool, only_states: bool) -> Teacher:
    if ablation.distils_from != "baseline" or not cached:
        return "online"
    return "mean_embeddings" if ablation.can_use_mean_embeddings and not only_states else "hidden_states"
