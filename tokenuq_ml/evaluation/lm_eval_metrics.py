"""From lm-eval's samples of a task to what each sample adds to each metric.

Metrics of this package are ratios of sums over samples, `sum(numerator) / sum(denominator)`, so that they can be
bootstrapped and compared. Means are such ratios, and so are the exponents of perplexities. A metric that is none (F1,
Matthews correlation, BLEU, ...) is left out by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Parts = tuple[list[float], list[float]]
"""Numerators and denominators, one of each per sample."""
_PROBES = (0.25, 1.0, 0.0, 0.125, 0.75)
"""Their mean is none of them, and not their median."""
_LENGTHS = (2, 1, 3, 1, 2)
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SampleParts:
    """One metric of a task."""

    name: str
    numerators: list[float]
    denominators: list[float]
    example_ids: list[str]
    higher_is_better: bool | None

    @property
    def value(self) -> float:
        """The metric: a ratio of sums."""
        return sum(self.numerators) / sum(self.denominators)


def metric_name(metric: str, filter_name: str) -> str:
    """Return lm-eval's name of a metric; the filter is left out if it is the only, unnamed one."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def sample_parts(
    values: Mapping[tuple[str, str], Mapping[str, Any]],
    aggregation: Mapping[str, Callable],
    higher_is_better: Mapping[str, bool | None],
) -> tuple[list[SampleParts], dict[str, str]]:
    """Return the metrics that are ratios of sums, and the others with the reason why they are left out.

    Args:
        values: (metric, filter) -> id of a sample -> lm-eval's value of it.
        aggregation: metric -> lm-eval's function from all values to one; a mean by default, as there.
        higher_is_better: metric -> direction, as its task says.
    """
    found, left_out = [], dict[str, str]()
    for (metric, filter_name), of_samples in values.items():
        name, function = metric_name(metric, filter_name), aggregation.get(metric)
        if _function_name(function) == "nanmean":
            of_samples = {key: value for key, value in of_samples.items() if not math.isnan(value)}
        listed = list(of_samples.values())
        made = _parts(name, listed, function, higher_is_better.get(metric, True)) if listed else None
        if made is None:
            left_out[name] = f"{_function_name(function)} is no mean over samples" if listed else "no sample has it"
            continue
        parts = SampleParts(made[0], *made[1], list(of_samples), made[2])
        if not all(map(math.isfinite, (*parts.numerators, *parts.denominators))) or min(parts.denominators) <= 0:
            left_out[name] = "a sample has no finite value"
        elif function is not None and not _agree(parts, name, float(function(listed))):
            left_out[name] = f"{_function_name(function)} is no mean over these samples"
        else:
            found.append(parts)
    return found, left_out


def _agree(parts: SampleParts, name: str, theirs: float) -> bool:
    """Return whether a metric has lm-eval's own value, of which it may be the logarithm."""
    ours = parts.value if parts.name == name else math.exp(parts.value)
    return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=_TOLERANCE)


def _parts(
    name: str, values: Sequence[Any], function: Callable | None, better: bool | None
) -> tuple[str, Parts, bool | None] | None:
    """Return the metric's name here, its parts and its direction; None if it is no ratio."""
    own = _function_name(function)
    if own == "perplexity" and _all_numbers(values):
        return f"log_{name}", ([-float(one) for one in values], [1.0] * len(values)), False
    if own in ("weighted_perplexity", "bits_per_byte") and _all_pairs(values):
        scale = math.log(2) if own == "bits_per_byte" else 1.0
        pairs = [-float(one[0]) / scale for one in values], [float(one[1]) for one in values]
        return (name if own == "bits_per_byte" else f"log_{name}"), pairs, False
    if _all_numbers(values) and _is_mean(function):
        return name, ([float(one) for one in values], [1.0] * len(values)), better
    if _all_lists(values) and _is_mean_of_items(function):
        sums = [float(sum(map(float, one))) for one in values]
        return name, (sums, [float(len(one)) for one in values]), better
    return None


def _function_name(function: Callable | None) -> str:
    return "mean" if function is None else getattr(function, "__name__", type(function).__name__)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(map(_is_number, values))


def _all_lists(values: Sequence[Any]) -> bool:
    return all(isinstance(one, list) and one and _all_numbers(one) for one in values)


def _all_pairs(values: Sequence[Any]) -> bool:
    return all(isinstance(one, (tuple, list)) and len(one) == 2 and _all_numbers(one) for one in values)


def _is_mean(function: Callable | None) -> bool:
    """Return whether a function is the mean of numbers, tried on some that are not those of a model."""
    return function is None or _gives(function, list(_PROBES), sum(_PROBES) / len(_PROBES))


def _is_mean_of_items(function: Callable | None) -> bool:
    """Return whether a function is the mean of all items of lists, which count equally."""
    lists = [[bool((number + place) % 3) for place in range(length)] for number, length in enumerate(_LENGTHS)]
    return function is not None and _gives(function, lists, sum(map(sum, lists)) / sum(_LENGTHS))


def _gives(function: Callable, values: list, expected: float) -> bool:
    try:
        result = float(function(values))
    except Exception:
        # A function of another kind of values, for example pairs of a label and a prediction.
        return False
    return math.isclose(result, expected, rel_tol=_TOLERANCE)
