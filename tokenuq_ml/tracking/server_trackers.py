"""Trackers with a server, or a local stand-in for one: MLflow and Weights & Biases."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerState

from tokenuq_ml.tracking.file_trackers import write_to
from tokenuq_ml.tracking.tracker_run import Status, TrackerRun, variables, without_user

RUN_TAG = "tokenuq.run"
"""Tag by which a run is found again in MLflow, which gives runs ids of its own."""
OF_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose runs MLflow's UI shows as trainings, with curves first."""
PROMPT = {
    # By default, MLflow asks a server that does not answer for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # As for Dagster: nothing is sent that nobody has asked for.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow's settings, where the environment does not have them."""


class MlflowRun(TrackerRun):
    """A run at `MLFLOW_TRACKING_URI`; by default, in `<folder>/mlflow.db`."""

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Begin the run, or continue the one that has its tag."""
        for name, value in PROMPT.items():
            os.environ.setdefault(name, value)
        import mlflow
        from transformers.integrations import MLflowCallback

        folder, tags = None, {**self.identity.tags, RUN_TAG: self.identity.id}
        if not mlflow.is_tracking_uri_set():
            folder = write_to(self.identity.folder)
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        # A person's variable may name a run, which would take the rows of all trainings.
        with variables(MLFLOW_RUN_ID=None, MLFLOW_NESTED_RUN=None):
            # Two processes must not both create the tables.
            with nullcontext() if folder is None else _locked(folder / "mlflow.lock"):
                experiment = _experiment(mlflow, self.identity.project, folder)
            found = self._earlier(mlflow, experiment) if self.identity.continues else None
            if found is None:
                run = mlflow.start_run(experiment_id=experiment, run_name=self.identity.name, tags=tags)
            else:
                run = mlflow.start_run(run_id=found)
                mlflow.set_tags(tags)
                if model is not None:
                    self.known_step = _last_step(mlflow, found)
            self.callback = MLflowCallback()
            # MLflow refuses another value of a parameter that it has, such as the folder on another machine.
            with variables(**({} if found is None else {"MLFLOW_MAX_LOG_PARAMS": "0"})):
                self.callback.setup(args, state, model)
        mlflow.flush_async_logging()
        # This thread may wait. Rows that are written later would fail unnoticed.
        self.callback._async_log = False
        self.place = _address(without_user(mlflow.get_tracking_uri()), experiment, run.info.run_id)

    def _earlier(self, mlflow: Any, experiment: str) -> str | None:
        """Return MLflow's id of the run; None if MLflow does not have it."""
        having_tag = f"tags.`{RUN_TAG}` = '{self.identity.id}'"
        runs = mlflow.MlflowClient().search_runs([experiment], having_tag, max_results=1)
        return runs[0].info.run_id if runs else None

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """End the run with its status."""
        import mlflow

        mlflow.end_run(status)


class WandbRun(TrackerRun):
    """A run at Weights & Biases, or with `WANDB_MODE=offline` in `WANDB_DIR`; by default, in `<folder>/wandb`."""

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Begin the run, or continue it by its id."""
        # Not to be uploaded, nor watched by hooks in the model, which would run outside of the tracker's thread.
        with variables(WANDB_LOG_MODEL=None, WANDB_WATCH=None):
            import wandb
            from transformers.integrations import WandbCallback

            own = self.identity
            self.callback = WandbCallback()
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or own.project,
                id=own.id,
                name=own.name,
                group=own.project,
                config={"tokenuq": dict(own.tags)},
                resume="allow",
                dir=os.environ.get("WANDB_DIR") or write_to(own.folder),
                # Not what the stage prints, which Dagster has.
                settings=wandb.Settings(console="off", silent=True),
            )
            self.callback.setup(args, state, model)
        self.place = run.url if not run.offline else str(Path(run.dir).parent)

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """End the run; W&B shows a status other than FINISHED as failed."""
        import wandb

        wandb.finish(exit_code=0 if status == "FINISHED" else 1)


def _experiment(mlflow: Any, project: str, folder: Path | None) -> str:
    """Return the id of the experiment that the environment names, else of the project's own, which is made."""
    if named := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return named
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
    client = mlflow.MlflowClient()
    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    try:
        artifacts = None if folder is None else f"{folder}/artifacts"
        return client.create_experiment(name, artifact_location=artifacts, tags=OF_TRAINING)
    except mlflow.exceptions.MlflowException:
        # Another process was first.
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _last_step(mlflow: Any, run: str) -> int:
    """Return the last step that has a loss in MLflow; -1 if none has."""
    return max((value.step for value in mlflow.MlflowClient().get_metric_history(run, "loss")), default=-1)


def _address(uri: str, experiment: str, run: str) -> str:
    """Return the page of a run on its server, or where the run is."""
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
    return f"{uri} run {run}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock of this machine; some network file systems have none."""
    with file.open("a") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
