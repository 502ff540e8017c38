"""Names that an ablation may use, with what they mean and which columns of the token tables they read.

Holds no code and imports no torch, so that definitions load fast. The functions
behind the names live in `selection.py` and `objectives.py`; a test holds the two
sides equal.
"""

from typing import NamedTuple


class Score(NamedTuple):
    """A number a token by which tokens are selected."""

    meaning: str
    columns: tuple[str, ...] = ()
    """What it reads of the token tables, by the names of `COLUMNS`."""
    of_student: bool = False
    """Whether it needs the student's loss at the step: the selection is then dynamic."""


SELECTORS = {
    "all": Score("every response token"),
    "loss": Score(
        "the student's cross-entropy in nats (scope batch), or the teacher's (scope dataset)", of_student=True
    ),
    "excess_loss": Score("the student's cross-entropy less the teacher's, nats", ("teacher_loss",), of_student=True),
    "teacher_loss": Score("the teacher's cross-entropy, nats", ("teacher_loss",)),
    "entropy": Score("entropy of the teacher's distribution, nats", ("entropy",)),
    "bald": Score("BALD under the teacher's dropout, nats: epistemic", ("bald",)),
    "aleatoric": Score("expected entropy under the teacher's dropout, nats", ("expected_entropy",)),
    "base_loss": Score("the base model's cross-entropy, nats", ("base_loss",)),
    "base_perplexity": Score("exp of the base model's cross-entropy", ("base_loss",)),
    "complexity": Score("0 for structure, 1 for words, 2 for numbers and code", ("category",)),
    "random": Score("uniform, drawn afresh at each step"),
    "fixed_random": Score("uniform, drawn once for each token"),
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
}
"""Name -> (table, column), of what a selection can read. `teacher_loss` is named apart from the student's own;
`category` comes as an index into `categories.CATEGORIES`."""

OBJECTIVES = {
    "mle": "cross-entropy with the label",
    "dft": "cross-entropy weighted by the label's probability",
    "eaft": "cross-entropy weighted by the entropy of the 20 likeliest tokens, over 3",
    "distill": "divergence to the teacher's distribution",
    "none": "not trained",
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
