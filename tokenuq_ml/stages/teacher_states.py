"""The asset `teacher_hidden`: the cache of the teacher's hidden states, or the reason why there is none."""

from itertools import islice

import torch
from peft import PeftModel

from tokenuq_ml import process_group
from tokenuq_ml.config import DistillSpec
from tokenuq_ml.data.batching import length_batches
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision
from tokenuq_ml.models.adapters import TrainedModel, adapter_digest
from tokenuq_ml.models.dynamic_rope import shared_length
from tokenuq_ml.models.forward import causal_lm, head_of, passes_through_root
from tokenuq_ml.models.sharding import is_sharded
from tokenuq_ml.scoring.batch_threads import batch_tokens
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import CheckOutcome
from tokenuq_ml.tables.parquet import content_of
from tokenuq_ml.tensor_digest import joined_digest, tensors_digest
from tokenuq_ml.training.online_marker import write_online_marker
from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher
from tokenuq_ml.training.teacher_cache import (
    HIDDEN_FILE,
    CachedTeacher,
    TeacherCache,
    cache_bytes,
)
from tokenuq_ml.training.teacher_head import HEAD_FILE

ONLINE_CHECK, ONLINE_CHECK_EXAMPLES = "cached_teacher_matches_online", 8
ONLINE_CHECK_BOUND = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Allowed KL(cached || online), nats: of the worst token for hidden states, of a batch's mean for mean embeddings. In
float32 only the stored state is rounded; a bfloat16 forward pass depends on the shape of its batch."""


def states_fit_budget(context: StageContext, model: TrainedModel) -> bool:
    """Return whether the cache fits its budget. If not, the asset is completed and reported without a cache."""
    head, folder = head_of(model), context.output("teacher_hidden")
    tokens = sum(len(example.positions) for example in _train_examples(context))
    needed = cache_bytes(tokens, head, _shares_head(model))
    budget = int(context.asset.fields["teacher_cache_gigabytes"] * 1e9)
    if needed <= budget:
        return True
    stored = f"nothing: {write_online_marker(folder, needed, budget)}; students run the teacher online"
    context.reporter.info(f"{context.name}: {stored}")
    context.done(
        # Students then read the dataset and the teacher, so these decide the version, and no size does.
        joined_digest("online", *_source_digests(context).values()),
        {"tokens": tokens, "hidden_size": head.features, "cached": False, "stored": stored},
        checks={ONLINE_CHECK: CheckOutcome(passed=True, description=stored)},
    )
    return False


def new_cache(context: StageContext, model: TrainedModel) -> TeacherCache:
    """Return the writer of the cache, a context manager."""
    examples = _train_examples(context)
    folder, digests = context.output("teacher_hidden"), _source_digests(context)
    return TeacherCache(folder, examples, head_of(model), shared_head=_shares_head(model), **digests)


def report_cache(context: StageContext, model: TrainedModel, tokens: int) -> None:
    """Compare the complete cache with the online teacher, and report the asset, on rank 0.

    Args:
        context: of the asset `teacher_hidden`.
        model: the base model with the teacher's adapter.
        tokens: response tokens in the cache.
    """
    # Rank 0 has completed the file.
    process_group.barrier()
    if not process_group.is_main():
        if is_sharded(model):
            # The passes are those of all ranks.
            _online_check(context, model)
        return
    folder, head = context.output("teacher_hidden"), head_of(model)
    path, has_means = folder / HIDDEN_FILE, head.is_linear and _shares_head(model)
    own_head = [tensors_digest(folder / HEAD_FILE)] if (folder / HEAD_FILE).exists() else []
    context.done(
        joined_digest(tensors_digest(path), *own_head, _source_digests(context)["dataset_digest"]),
        {
            "tokens": tokens,
            "hidden_size": head.features,
            "cached": True,
            "stored": "hidden_states, mean_embeddings" if has_means else "hidden_states",
            "megabytes": path.stat().st_size / 1e6,
        },
        checks={ONLINE_CHECK: _online_check(context, model)},
    )


def _online_check(context: StageContext, model: TrainedModel) -> CheckOutcome:
    """Compare the cache, in both forms that students read, with the online teacher on a few examples."""
    numerics, head, digests = context.numerics, head_of(model), _source_digests(context)
    # Without a distillation the cache gives hidden states; with forward KL, mean embeddings if it has them.
    caches = [
        CachedTeacher(context.output("teacher_hidden"), numerics.device, **digests, distillation=distillation)
        for distillation in (None, DistillSpec())
    ]
    online = OnlineTeacher(TEACHER_ADAPTER, numerics) if _shares_head(model) else SeparateTeacher(model, numerics)
    sample = list(islice(_train_examples(context), ONLINE_CHECK_EXAMPLES))
    errors = []
    batches = length_batches(sample, batch_tokens(numerics), shared_length=shared_length(causal_lm(model)))
    for batch in (b.to(numerics.device) for b in batches):
        with passes_through_root(model):
            hidden_ND = online.states(model, batch).hidden_ND
        label_N = batch.label_N
        ones_N = torch.ones_like(label_N, dtype=torch.float32)
        distil_all = BatchDecision.of_weights(0 * ones_N, ones_N)
        for cached in caches:
            term = TeacherTerm(cached.states(model, batch), head=cached.head)
            out = training_loss(hidden_ND, head, label_N, distil_all, teacher=term)
            # From mean embeddings, one token's divergence carries the rounding of its logits; the mean does not.
            means = cached.form == "mean_embeddings"
            errors.append(out.divergence_N.mean().abs().item() if means else out.divergence_N.max().item())
    error, bound = max(errors), ONLINE_CHECK_BOUND.get(numerics.dtype, 0.1)
    return CheckOutcome(
        passed=error <= bound,
        description=f"at most {error:.3g} nats apart on {len(sample)} examples; {bound:.3g} are allowed",
        figures={"error": error, "bound": bound, "examples": len(sample)},
    )


def _shares_head(model: TrainedModel) -> bool:
    """Return whether students have the teacher's head: adapters leave that of the base model as it is."""
    return isinstance(model, PeftModel)


def _train_examples(context: StageContext) -> StoredExamples:
    return StoredExamples(context.input("tokenized_dataset"), ["train"])


def _source_digests(context: StageContext) -> dict[str, str]:
    """Return the dataset and the teacher that the cache belongs to; keywords of TeacherCache and CachedTeacher."""
    return {
        "dataset_digest": content_of(context.input("tokenized_dataset")),
        "teacher_digest": adapter_digest(context.input("adapter")),
    }
