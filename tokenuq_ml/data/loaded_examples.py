"""The result of loading a dataset."""

from dataclasses import dataclass

from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.rejected_rows import RejectedRows


@dataclass(frozen=True)
class LoadedExamples:
    """The examples of a dataset, figures about its rows, and the rows that were rejected."""

    examples: list[Example]
    metrics: dict[str, int | str]
    rejected: RejectedRows
    warnings: tuple[str, ...] = ()
    """Sentences about what a user should look at."""
