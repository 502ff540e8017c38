"""`--json` of all commands: one JSON text on standard output and nothing else, also for an error."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from tokenuq_ml.redaction import redacted_values
from tokenuq_pipeline.runtime.readers import print_on


def add_json(parser: argparse.ArgumentParser, what: str, has_format: bool = False) -> None:
    """Add `--json`.

    Args:
        parser: of a command.
        what: its help.
        has_format: the command also knows `--format json`, the older name. The value is then `options.format`.
    """
    if has_format:
        parser.add_argument("--format", choices=("text", "json"), default="text", help=argparse.SUPPRESS)
        parser.add_argument("--json", dest="format", action="store_const", const="json", help=what)
    else:
        parser.add_argument("--json", action="store_true", help=what)


def print_json(value: Any) -> None:
    """Print a value as the JSON text of a command. Secrets are hidden, paths are text, NaN and infinity are null."""
    print_on(json.dumps(_finite(redacted_values(value)), indent=1, default=str, allow_nan=False))


def print_error(message: str, exit_code: int) -> None:
    """Print the JSON text of a command that has failed before it had a result."""
    print_json({"error": message, "exit_code": exit_code})


def wants_json(options: argparse.Namespace) -> bool:
    """Return whether a command prints JSON."""
    return getattr(options, "json", False) is True or getattr(options, "format", None) == "json"


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether arguments that could not be parsed ask for JSON."""
    pairs = zip(arguments, arguments[1:], strict=False)
    return "--json" in arguments or "--format=json" in arguments or ("--format", "json") in pairs


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
