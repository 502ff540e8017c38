"""The command `tokenuq`: parse the arguments, run a command of `commands/`, return the exit code."""

import argparse
import os
import sys

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import (
    FAILED,
    INTERRUPTED,
    USAGE,
    adopt,
    curate,
    plan,
    prune,
    query,
    run,
    show,
    status,
    ui,
    verify,
)

COMMANDS = (
    plan,
    run,
    show,
    status,
    verify,
    adopt,
    prune,
    query,
    curate,
    ui,
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="tokenuq", description="Post-training with a token-level, uncertainty-aware objective."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.function(options)
    except InputError as error:
        print(f"error: {escaped(str(error))}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to resume from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Python would complain at exit when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
