"""The function that computes each kind of comparison."""

from collections.abc import Callable
from typing import Any

from tokenuq_ml.reports.comparisons import correlations, curricula, front, phase_diagram, thresholds
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.parts import Findings

COMPARE: dict[str, Callable[[ComparisonInputs[Any]], Findings]] = {
    "front": front.compare,
    "thresholds": thresholds.compare,
    "phase_diagram": phase_diagram.compare,
    "correlations": correlations.compare,
    "curricula": curricula.compare,
}
"""Value of `kind` -> its function, which may write plots to the folder of its inputs."""
