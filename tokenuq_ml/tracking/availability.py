"""Check that the trackers of a study are installed, and know where to write. Does not import any of them."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping

NEEDS_PLACE = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "mlflow": "MLFLOW_TRACKING_URI"}
"""Tracker -> the environment variable that says where it writes; by default, into the store's folder."""
_SWITCHED_OFF = {"mlflow": "DISABLE_MLFLOW_INTEGRATION"}
"""Tracker -> the environment variable by which transformers does without it."""


def is_installed(package: str) -> bool:
    """Return whether a package is installed. A folder of its name, such as `wandb/` of runs, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def tracker_problems(
    report_to: Iterable[str], has_folder: bool, environment: Mapping[str, str], looks_for_packages: bool = True
) -> Iterator[str]:
    """Yield why a tracker cannot be used here, each as a sentence with the remedy.

    Args:
        report_to: names of trackers.
        has_folder: the store is a folder, so that trackers can write files into it.
        environment: of the stage.
        looks_for_packages: the stage runs on this machine, with these packages.
    """
    for name in report_to:
        variable, switch = NEEDS_PLACE.get(name), _SWITCHED_OFF.get(name)
        if looks_for_packages and not is_installed(name):
            yield (
                f"`report_to` names {name}, and the package {name} is not installed; pip install {name} (or "
                f"'tokenuq[tracking]'), or remove {name} from `report_to`"
            )
        elif switch is not None and environment.get(switch, "").upper() == "TRUE":
            yield f"`report_to` names {name}, and {switch} switches it off; unset it, or remove {name} from `report_to`"
        elif variable is not None and not has_folder and not environment.get(variable):
            yield (
                f"`report_to` names {name}, which has no folder to write to, because the store is in a bucket; set "
                f"{variable}, or remove {name} from `report_to`"
            )
