"""Names that an ablation may use, with what they mean.

Holds no code and imports no torch, so that definitions load fast. The functions
behind the names live in `selection.py` and `objectives.py`; a test holds the two
sides equal.
"""

SELECTORS = {
    "all": "every response token",
    "loss": "the student's cross-entropy in nats (scope batch), or the teacher's (scope dataset)",
}

OBJECTIVES = {
    "mle": "cross-entropy with the label",
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
