"""The trackers of a stage: those of its training, and what an evaluation adds to the training's run."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenuq_ml import process_group
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.tracking.availability import tracker_problems
from tokenuq_ml.tracking.callback import TrackingCallback, mirror_figures
from tokenuq_ml.tracking.request import TrackedRun


def require_trackers(request: StageRequest) -> None:
    """Check that the trackers of a training can be used, before anything is loaded.

    Raises:
        InputError: a package is missing, or a tracker has nowhere to write.
    """
    if problem := next(_problems(request), None):
        raise InputError(problem)


def tracked_training(context: StageContext, work_dir: Path) -> TrackingCallback | None:
    """Return what reports a training to the trackers of its study; None without any, and on ranks other than 0."""
    request = context.request.tracking
    if request is None or not process_group.is_main():
        return None
    return TrackingCallback(request, context.stage, work_dir, _warning(context))


def mirrored(context: StageContext, figures: Mapping[str, Any], evaluated: TrackedRun | None = None) -> dict[str, str]:
    """Add the figures of an evaluation to the run of the model's training; a failure is a warning.

    Args:
        context: of the evaluation.
        figures: as the asset shows them.
        evaluated: the run, if this stage has trained the model.

    Returns:
        What the asset shows of the run; nothing without trackers.
    """
    request = context.request.tracking
    if request is None:
        return {}
    if problem := next(_problems(context.request), None):
        context.reporter.warning(f"{context.name}: its figures are reported to no tracker: {problem}")
        return {}
    return mirror_figures(request, context.stage, figures, evaluated or request.evaluated, _warning(context))


def _problems(request: StageRequest) -> Iterator[str]:
    if request.tracking is None:
        return iter(())
    return tracker_problems(request.tracking.report_to, request.tracking.folder is not None, os.environ)


def _warning(context: StageContext) -> Callable[[str], None]:
    return lambda sentence: context.reporter.warning(f"{context.name}: {sentence}")
