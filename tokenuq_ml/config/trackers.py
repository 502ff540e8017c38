"""The experiment trackers that `report_to` of a study may name."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from tokenuq_ml.config.base import one_of

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
"""transformers' names of them. The package of each has the same name."""


def _listed(value: Any) -> Any:
    """Return a single name as a list of one, as `transformers.TrainingArguments` takes it."""
    return [value] if isinstance(value, str) else value


def _check_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names a tracker twice; remove one")
    return names


ReportTo = Annotated[
    tuple[Annotated[str, one_of(TRACKERS, "tracker")], ...], BeforeValidator(_listed), AfterValidator(_check_once)
]
