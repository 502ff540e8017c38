"""What a stage is told about tracking: which trackers, where they write, and what their runs are called."""

from pydantic import BaseModel, ConfigDict

RUN = "tracking_run"
"""Figure of a trained asset: the id of its run, the same in all trackers."""


class TrackedRun(BaseModel):
    """The run of a training, in every tracker that it reported to."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    name: str
    """What people call it: `<ablation>/student`, `baseline_teacher`."""
    step: int
    """Optimiser steps of the training."""


class TrackingRequest(BaseModel):
    """The trackers of a stage. No part of any version."""

    model_config = ConfigDict(extra="forbid")
    report_to: tuple[str, ...]
    """Names of trackers, as in the study."""
    project: str
    """The study, or `models` for a model that is trained from scratch: what trackers group runs by."""
    folder: str | None = None
    """The store's folder for trackers that write files. None: the store has none, because it is in a bucket."""
    tags: dict[str, dict[str, str]]
    """Stage -> the tags of its run; `asset` is the name of its asset."""
    evaluated: TrackedRun | None = None
    """The run of the training that this stage evaluates; None: the stage trains it, or it was trained without one."""

    def run_name(self, stage: str) -> str:
        """Return the name of a run that a stage begins: that of its asset without the project."""
        return self.tags[stage]["asset"].removeprefix(f"{self.project}/")
