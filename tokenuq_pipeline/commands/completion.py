"""Completion of the command line in a shell, by argcomplete: names of the configuration as values of options.

eval "$(register-python-argcomplete tokenuq)"
"""

import argparse
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from tokenuq_ml.config.load import Config

NAMES: "dict[str, Callable[[Config], Iterable[str]]]" = {
    "study": lambda config: config.study_names,
    "comparison": lambda config: config.comparisons,
    "export": lambda config: config.exports,
    "ablation": lambda config: config.ablations,
    "model": lambda config: config.models,
    "data": lambda config: config.datasets,
    "ood": lambda config: config.datasets,
}
"""Option, without dashes -> the names that it takes."""
FILES = {"model", "data", "ood"}
"""Options that take paths too."""


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit, if it asks for completions; otherwise do nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    _add_completers(parser)
    argcomplete.autocomplete(parser)


def _add_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_completers(command)
        elif action.dest in NAMES and action.nargs != 0:
            action.completer = _completer(action.dest)  # type: ignore[attr-defined]


def _completer(option: str) -> Callable[..., list[str]]:
    def names(prefix: str = "", **_) -> list[str]:
        from tokenuq_pipeline.commands.common import configuration

        try:
            found = [name for name in NAMES[option](configuration()) if name.startswith(prefix)]
        except InputError:
            # The command itself says what is wrong.
            found = []
        if option in FILES:
            from argcomplete.completers import FilesCompleter

            found += FilesCompleter()(prefix)
        return found

    return names
