"""Trackers that write files: TensorBoard, and Trackio with its database."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState

from tokenuq_ml.tracking.tracker_run import Status, TrackerRun


class TensorBoardRun(TrackerRun):
    """Event files in a folder of the run's own: `<folder>/tensorboard/<project>/<name>/<id>`."""

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Write further event files next to those that the run has.

        TensorBoard hides rows after the step that the training resumes from, which it trains again (`purge_step`).
        """
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        own = self.identity
        root = os.environ.get("TENSORBOARD_LOGGING_DIR") or f"{own.folder}/tensorboard"
        self.place = f"{os.path.expanduser(root).rstrip('/')}/{own.project}/{own.name}/{own.id}"
        repeats = model is not None and own.continues
        writer = SummaryWriter(self.place, purge_step=state.global_step + 1 if repeats else None)
        self.callback = TensorBoardCallback(writer)
        rows = "\n".join(f"| {name} | {value} |" for name, value in own.tags.items())
        writer.add_text("tokenuq", f"| tag | value |\n| --- | --- |\n{rows}", state.global_step)
        if model is not None:
            self.callback.on_train_begin(args, state, TrainerControl(), model=model)
        writer.flush()

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """Close the event file."""
        self.callback.on_train_end(args, state, TrainerControl())


class TrackioRun(TrackerRun):
    """A run in Trackio's database (`TRACKIO_DIR`), or in the Space that `TRACKIO_SPACE_ID` names."""

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Begin the run, or continue it by its name."""
        import trackio
        from transformers.integrations import TrackioCallback

        project = self.identity.project
        earlier = _configured(trackio, project, args.run_name) if self.identity.continues else {}
        self.callback = TrackioCallback()
        self.callback.setup(args, state, model)
        # Each process replaces the configuration of the run.
        trackio.config.update({**earlier, **self.identity.tags})
        space = trackio.context_vars.current_space_id.get()
        self.place = (
            f"https://huggingface.co/spaces/{space}"
            if space
            else f"run {args.run_name} of project {project}: trackio show --project {project}"
        )

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """End the run."""
        self.callback.on_train_end(args, state, TrainerControl())


def _configured(trackio: Any, project: str, name: str) -> dict[str, Any]:
    """Return the configuration that a run has in the local database; nothing of a run in a Space."""
    with suppress(Exception):
        found = next(run.config for run in trackio.Api().runs(project) if run.name == name)
        return {key: value for key, value in found.items() if not key.startswith("_")}
    return {}


def write_to(folder: str | None) -> Path | None:
    """Return the folder for a tracker's files, which is made; None: the store has none."""
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
