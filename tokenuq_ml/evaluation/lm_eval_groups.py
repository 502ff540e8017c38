"""Metrics of lm-eval's groups, such as `mmlu_pro`: weighted means of the values of their tasks."""

import math
from collections.abc import Mapping
from typing import Any

from tokenuq_ml.evaluation.lm_eval_metrics import SampleParts, metric_name

_TOLERANCE = 1e-9


def group_metrics(
    groups: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[SampleParts]], dict[str, str]]:
    """Return group -> its metrics over the samples of its tasks, and what is left out: `<group> <metric>` -> reason.

    A task's samples are scaled so that its weight is lm-eval's: its number of samples, or 1 (`weight_by_size`).

    Args:
        groups: as lm-eval loads them.
        results: task -> what `TaskRunner.measure` returns.
    """
    values = {name: {**result["values"], "sample_len": result["size"]} for name, result in results.items()}
    found: dict[str, list[SampleParts]] = {}
    left_out: dict[str, str] = {}
    for name, group in groups.items():
        for settings in group.aggregate_metric_list or []:
            filters = settings.filter_list or sorted(_filters(group, settings.metric, values))
            for filter_name in [filters] if isinstance(filters, str) else filters:
                key, own = f"{settings.metric},{filter_name}", metric_name(settings.metric, filter_name)
                expected = group.aggregate(values).get(key)
                if expected is None:
                    continue
                tasks = [one.task_name for one in group.get_all_tasks() if key in values.get(one.task_name, {})]
                weights = {task: results[task]["size"] if settings.weight_by_size else 1 for task in tasks}
                parts = _joined(own, {task: results[task]["metrics"] for task in tasks}, weights)
                if parts is None or not math.isclose(parts.value, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
                    left_out[f"{name} {own}"] = "it is no mean over samples"
                else:
                    found.setdefault(name, []).append(parts)
    return found, left_out


def _filters(group: Any, metric: str, values: Mapping[str, Mapping[str, Any]]) -> set[str]:
    keys = (key for task in group.get_all_tasks() for key in values.get(task.task_name, {}))
    return {key.partition(",")[2] for key in keys if key.startswith(f"{metric},")}


def _joined(
    metric: str, of_tasks: Mapping[str, list[Mapping[str, Any]]], weights: Mapping[str, int]
) -> SampleParts | None:
    """Return a metric over the samples of all tasks; None if it was left out of one."""
    joined = SampleParts(metric, [], [], [], None)
    for task, metrics in of_tasks.items():
        own = next((SampleParts(**one) for one in metrics if one["name"] == metric), None)
        if own is None:
            return None
        scale = weights[task] / sum(own.denominators)
        joined.numerators.extend(scale * one for one in own.numerators)
        joined.denominators.extend(scale * one for one in own.denominators)
        joined.example_ids.extend(own.example_ids)
        joined = SampleParts(metric, joined.numerators, joined.denominators, joined.example_ids, own.higher_is_better)
    return joined
