"""The names that an ablation may use, what they mean, and which columns of the token tables they read.

Holds no code and does not import torch, so that asset definitions load fast. The functions behind the names are in
`training/selectors.py` and `training/objectives.py`; a test checks that both sides have the same names.
"""

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from tokenuq_ml.config.estimators import ESTIMATORS, column_of


class Score(NamedTuple):
    """A number per token, by which tokens are selected."""

    meaning: str
    columns: tuple[str, ...] = ()
    """The columns of the token tables that it reads, by their names in `COLUMNS`."""
    of_student: bool = False
    """Whether it reads the student's loss at the current step. The selection is then dynamic."""
    student_columns: tuple[str, ...] = ()
    """What it reads of the student's own distributions at the current step, by names in `STUDENT_COLUMNS`."""


class StudentColumn(NamedTuple):
    """A number per token that is computed from the student's own logits at the current step."""

    meaning: str
    tables: tuple[str, ...] = ()
    """Tables that it is computed with."""


class Setting(NamedTuple):
    """A number that an objective takes."""

    default: float
    meaning: str
    low: float = 0.0
    high: float = inf


class Objective(NamedTuple):
    """What is done with a set of tokens."""

    meaning: str
    scales_loss: bool = False
    """Whether each token's cross-entropy is multiplied by a factor of the student's own logits."""
    settings: Mapping[str, Setting] = {}
    columns: tuple[str, ...] = ()
    """The columns of the token tables that its weights read, by their names in `COLUMNS`."""
    of_student: bool = False
    """Whether its weights read the student's losses at the current step."""
    of_batch: bool = False
    """Whether a token's weight depends on other tokens of the optimiser batch."""
    splits: bool = False
    """Whether it divides each token between cross-entropy and the divergence of `distill`, which must be given."""


DIVERGENCE = "student_divergence"
"""The column that needs the teacher's distributions."""

SELECTORS = {
    "all": Score("every response token"),
    "loss": Score(
        "the student's cross-entropy in nats (scope batch), or the teacher's (scope dataset)", of_student=True
    ),
    "excess_loss": Score("the student's cross-entropy minus the teacher's, nats", ("teacher_loss",), of_student=True),
    "teacher_loss": Score("the teacher's cross-entropy, nats", ("teacher_loss",)),
    "entropy": Score("entropy of the teacher's distribution, nats", ("entropy",)),
    "bald": Score("BALD under the teacher's dropout, nats: epistemic uncertainty", ("bald",)),
    **{
        column_of(name): Score(f"BALD by another estimator, nats: {estimator.meaning}", (column_of(name),))
        for name, estimator in ESTIMATORS.items()
    },
    "aleatoric": Score(
        "expected entropy under the teacher's dropout, nats: aleatoric uncertainty", ("expected_entropy",)
    ),
    "base_loss": Score("the base model's cross-entropy, nats", ("base_loss",)),
    "base_perplexity": Score("exp of the base model's cross-entropy", ("base_loss",)),
    "change": Score(
        "the teacher's divergence from the base model, nats: what training changed, whatever the label is",
        ("teacher_change",),
    ),
    "influence": Score(
        "the base model's cross-entropy minus the teacher's, nats: what training changed for the label",
        ("base_loss", "teacher_loss"),
    ),
    "retrospective_loss": Score(
        "the base model's cross-entropy minus the student's, nats", ("base_loss",), of_student=True
    ),
    "probability": Score("the label's probability under the student", of_student=True),
    "student_entropy": Score(
        "entropy of the student's distribution, nats", of_student=True, student_columns=("student_entropy",)
    ),
    "divergence": Score(
        "the student's divergence to the teacher, nats", of_student=True, student_columns=(DIVERGENCE,)
    ),
    "entropy_or_divergence": Score(
        "student entropy or divergence to the teacher, whichever is high",
        of_student=True,
        student_columns=("student_entropy", DIVERGENCE),
    ),
    "complexity": Score("0 for structure, 1 for words, 2 for numbers and code", ("category",)),
    "random": Score("uniform, drawn again at each step"),
    "fixed_random": Score("uniform, drawn once for each token"),
    "oracle_kl": Score("the teacher's divergence from the true distribution, nats", ("true_kl",)),
    "oracle_kl_student": Score(
        "the student's divergence from the true distribution, nats",
        of_student=True,
        student_columns=("student_true_kl",),
    ),
    "oracle_entropy": Score("entropy of the true distribution, nats", ("true_entropy",)),
}

COLUMNS = {
    "teacher_loss": ("token_losses", "loss"),
    "entropy": ("token_losses", "entropy"),
    "rank": ("token_losses", "rank"),
    "base_loss": ("token_losses", "base_loss"),
    "base_entropy": ("token_losses", "base_entropy"),
    "category": ("token_losses", "category"),
    "predictive_entropy": ("token_uncertainty", "predictive_entropy"),
    "expected_entropy": ("token_uncertainty", "expected_entropy"),
    "bald": ("token_uncertainty", "bald"),
    "mc_loss": ("token_uncertainty", "mc_loss"),
    "teacher_change": ("teacher_change", "change"),
    **{column_of(name): ("uncertainty_estimates", column_of(name)) for name in ESTIMATORS},
    "true_kl": ("true_divergence", "true_kl"),
    "clean_kl": ("true_divergence", "clean_kl"),
    "true_entropy": ("token_truth", "true_entropy"),
    "true_loss": ("token_truth", "true_loss"),
}
"""Name -> (table, column) of everything that a selection can read.

`teacher_loss` has its own name because `loss` is the student's. `category` is read as an index into
`token_categories.CATEGORIES`.
"""

STUDENT_COLUMNS = {
    "student_entropy": StudentColumn("entropy of the student's distribution, nats"),
    DIVERGENCE: StudentColumn("the student's divergence to the teacher that the ablation distils, nats"),
    "student_true_kl": StudentColumn("the student's divergence from the true distribution, nats", ("token_truth",)),
}
"""Name -> what is computed while the kernel computes the student's losses; `training/student_columns.py` has the
functions."""

TRUTH_TABLES = frozenset({"token_truth", "true_divergence"})
"""Tables that only studies of a synthetic language have."""

_WEIGHT = {"weight": Setting(1.0, "factor of the cross-entropy")}

OBJECTIVES = {
    "mle": Objective("cross-entropy with the label", settings=_WEIGHT),
    "dft": Objective("cross-entropy weighted by the label's probability", scales_loss=True, settings=_WEIGHT),
    "eaft": Objective(
        "cross-entropy weighted by the entropy of the 20 likeliest tokens, over 3", scales_loss=True, settings=_WEIGHT
    ),
    "power": Objective(
        "cross-entropy weighted by a power of the label's probability",
        scales_loss=True,
        settings={"exponent": Setting(1.0, "k of p^k"), **_WEIGHT},
    ),
    "focal": Objective(
        "focal loss: cross-entropy times a power of 1 minus the label's probability",
        scales_loss=True,
        settings={"gamma": Setting(2.0, "power of 1 - p"), **_WEIGHT},
    ),
    "talr": Objective(
        "cross-entropy weighted by exp(-loss / median loss of the batch's examples)",
        of_student=True,
        of_batch=True,
        settings={"floor": Setting(0.01, "smallest weight", high=1.0), **_WEIGHT},
    ),
    "iw_sft": Objective(
        "cross-entropy weighted by how much likelier the example is than under the base model",
        columns=("base_loss",),
        of_student=True,
        settings={
            "power": Setting(1.0, "power of the ratio of probabilities per token"),
            "clip": Setting(16.0, "largest weight"),
            **_WEIGHT,
        },
    ),
    "forget": Objective(
        "cross-entropy with a negative weight that grows linearly over training",
        settings={"weight": Setting(0.1, "size of the weight at the last step")},
    ),
    "epistemic_share": Objective(
        "cross-entropy by the token's share of epistemic uncertainty, divergence by the rest",
        columns=("bald", "expected_entropy"),
        of_batch=True,
        splits=True,
        settings=_WEIGHT,
    ),
    "label_trust": Objective(
        "cross-entropy by the probability that the label is right, divergence by the rest",
        columns=("mc_loss",),
        splits=True,
        settings={"noise": Setting(0.002, "probability of a given wrong label", high=1.0), **_WEIGHT},
    ),
    "distill": Objective("divergence to the teacher's distribution"),
    "none": Objective("not trained"),
}

DIVERGENCES = {
    "forward_kl": "KL(teacher || student)",
    "reverse_kl": "KL(student || teacher)",
    "jsd": "Jensen-Shannon: the mean of both KLs to the mean distribution",
}

TEACHERS = {
    "baseline": "the study's baseline_teacher",
    "base": "the base model without adapter",
}
