"""Errors that are about the machine, a full disk or a lack of memory, and not about what was being read or run.

A library's errors are often turned into a sentence about a model, a dataset or a file. These are not: the stage ends
with a sentence about the machine (`tokenuq_ml/stages/failures.py`).
"""

from tokenuq_ml.disk import Cause, cause_of
from tokenuq_ml.out_of_memory import ran_out


def is_system_error(error: BaseException) -> bool:
    """Return whether an error means that a disk is full or memory ran out."""
    return cause_of(error) not in (None, Cause.VAGUE) or ran_out(error)
