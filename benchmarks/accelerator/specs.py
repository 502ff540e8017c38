"""The settings that are measured, as plain values: tokenuq's own classes need pydantic, which a bare machine may lack.

They have the attributes that training and scoring read; a test compares each with that of the real class.
"""

from types import SimpleNamespace

RANK, ALPHA, DROPOUT, SAMPLES = 32, 64, 0.1, 10
QUANTILE = 0.25

LORA = SimpleNamespace(rank=RANK, alpha=ALPHA, dropout=DROPOUT)
"""A `LoraSpec`."""
UNCERTAINTY = SimpleNamespace(samples=SAMPLES, dropout=DROPOUT, attention_dropout=0.0, mask="sequence", seed=0)
"""An `UncertaintySpec`: BALD from ten samples."""


MLE = SimpleNamespace(kind="mle", distill=None, setting=lambda name: 1.0)
NONE = SimpleNamespace(kind="none", distill=None)


def _ablation(select: SimpleNamespace, rest: SimpleNamespace, needs_losses: bool) -> SimpleNamespace:
    return SimpleNamespace(
        select=select,
        selected=MLE,
        rest=rest,
        distillation=rest.distill,
        seed=0,
        rank_growth=None,
        train=SimpleNamespace(values={}),
        budget="equal_steps",
        functions=(),
        scales_loss=False,
        needs_student_losses=needs_losses,
        student_columns_read=(),
        decides_together=lambda is_masked: needs_losses and not is_masked,
    )


def paper() -> SimpleNamespace:
    """Return the paper's objective: cross-entropy for the quarter with the highest loss, forward KL for the rest."""
    distill = SimpleNamespace(
        teacher="baseline",
        divergence="forward_kl",
        temperature=1.0,
        weight=1.0,
        top_k=None,
        is_linear_in_teacher=True,
    )
    select = SimpleNamespace(
        by="loss",
        keep="top",
        quantile=QUANTILE,
        threshold=None,
        unit="token",
        scope="batch",
        by_quantile=True,
        takes_all=False,
        is_decided_before_training=False,
    )
    return _ablation(select, SimpleNamespace(kind="distill", distill=distill), needs_losses=True)


def mle() -> SimpleNamespace:
    """Return plain fine-tuning: cross-entropy for every response token."""
    select = SimpleNamespace(
        by="all",
        keep="top",
        quantile=1.0,
        threshold=None,
        unit="token",
        scope="batch",
        by_quantile=True,
        takes_all=True,
        is_decided_before_training=False,
    )
    return _ablation(select, NONE, needs_losses=False)
