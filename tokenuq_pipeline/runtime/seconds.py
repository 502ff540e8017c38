"""Durations that environment variables set."""

from collections.abc import Mapping

from tokenuq_ml.errors import InputError


def seconds_of(variable: str, default: float, environment: Mapping[str, str]) -> float:
    """Return the seconds that a variable says, or the default if it is not set.

    Raises:
        InputError: the variable is not a positive number.
    """
    text = environment.get(variable)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"{variable}: must be a positive number of seconds, is {text!r}")
    return value
