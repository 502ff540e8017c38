"""The names that an ablation may use, what they mean, and which columns of the token tables they read.

Holds no code and does not import torch, so that asset definitions load fast. The functions behind the names are in
`training/selection.py` and `training/objectives.py`; a test checks that both sides have the same names.
"""

from typing import NamedTuple


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


class Objective(NamedTuple):
    """What is done with a set of tokens."""

    meaning: str
    scales_loss: bool = False
    """Whether each token's cross-entropy is multiplied by a factor of the student's own logits."""


SELECTORS = {
    "all": Score("every response token"),
    "loss": Score(
        "the student's cross-entropy in nats (scope batch), or the teacher's (scope dataset)", of_student=True
    ),
    "excess_loss": Score("the student's cross-entropy minus the teacher's, nats", ("teacher_loss",), of_student=True),
    "teacher_loss": Score("the teacher's cross-entropy, nats", ("teacher_loss",)),
    "entropy": Score("entropy of the teacher's distribution, nats", ("entropy",)),
    "bald": Score("BALD under the teacher's dropout, nats: epistemic uncertainty", ("bald",)),
    "aleatoric": Score(
        "expected entropy under the teacher's dropout, nats: aleatoric uncertainty", ("expected_entropy",)
    ),
    "base_loss": Score("the base model's cross-entropy, nats", ("base_loss",)),
    "base_perplexity": Score("exp of the base model's cross-entropy", ("base_loss",)),
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
    "student_true_kl": StudentColumn("the student's divergence from the true distribution, nats", ("token_truth",)),
}
"""Name -> what is computed while the kernel computes the student's losses; `training/student_columns.py` has the
functions."""

TRUTH_TABLES = frozenset({"token_truth", "true_divergence"})
"""Tables that only studies of a synthetic language have."""

OBJECTIVES = {
    "mle": Objective("cross-entropy with the label"),
    "dft": Objective("cross-entropy weighted by the label's probability", scales_loss=True),
    "eaft": Objective("cross-entropy weighted by the entropy of the 20 likeliest tokens, over 3", scales_loss=True),
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
