"""Held-out losses, generated answers, their judgement, and confidence intervals."""
