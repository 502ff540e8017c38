"""Evaluation of a model: held-out losses, generated answers and their verdicts, and confidence intervals."""
