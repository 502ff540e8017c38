"""The command `tokenuq`: parse the arguments, run a command of `commands/`, return the exit code."""

import argparse
import contextlib
import errno
import gc
import os
import sys
from typing import Any, NoReturn

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import redact_tracebacks, redacted
from tokenuq_pipeline.commands import (
    FAILED,
    INTERRUPTED,
    READER_GONE,
    USAGE,
    ablate,
    adopt,
    advise,
    curate,
    doctor,
    export,
    plan,
    prune,
    query,
    run,
    score,
    show,
    status,
    ui,
    verify,
)
from tokenuq_pipeline.commands.completion import complete
from tokenuq_pipeline.commands.json_output import asks_for_json, print_error, wants_json

COMMANDS = (
    ablate,
    plan,
    run,
    show,
    status,
    verify,
    adopt,
    prune,
    query,
    score,
    curate,
    advise,
    export,
    doctor,
    ui,
)

GC_THRESHOLD = 100_000
"""Objects that are allocated between two collections; Python's default is 700."""


class Parser(argparse.ArgumentParser):
    """A parser whose messages cannot control a terminal: they quote what was given."""

    asks_for_json = False
    """Whether the arguments that are parsed ask for JSON: it is needed where they are wrong."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(escaped(message), file)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, as JSON too if it was asked for, and exit."""
        if Parser.asks_for_json:
            print_error(message, USAGE)
            sys.stdout.flush()
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = Parser(prog="tokenuq", description="Post-training with a token-level, uncertainty-aware objective.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code."""
    if arguments is not None:
        # A caller from Python, who has a garbage collector to keep.
        return _run(arguments)
    # Imports and definitions allocate half a million objects that stay. To look for garbage among them takes a tenth of
    # a short command, and at the exit of Python a quarter.
    gc.set_threshold(GC_THRESHOLD)
    try:
        return _run(arguments)
    finally:
        # DuckDB would print a page on what is never collected.
        if "duckdb" not in sys.modules:
            gc.freeze()


def _run(arguments: list[str] | None) -> int:
    _open_closed_streams()
    redact_tracebacks()
    top = parser()
    complete(top)
    Parser.asks_for_json = asks_for_json(sys.argv[1:] if arguments is None else arguments)
    options = top.parse_args(arguments)
    try:
        code = options.function(options)
        # Here it is noticed if the reader is gone or a disk is full; at its exit, Python would print a traceback.
        sys.stdout.flush()
        return code
    except InputError as error:
        return _failed(options, str(error), USAGE)
    except KeyboardInterrupt:
        _say("")
        return _failed(options, "stopped; run the same command again to resume from the last checkpoint", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except Exception as error:
        sentence = _system_error(error)
        if sentence is None:
            if wants_json(options):
                print_error(f"{type(error).__name__}: {error}", FAILED)
            raise
        code = _failed(options, sentence, FAILED)
        _drop_output()
        return code


def _failed(options: argparse.Namespace, sentence: str, code: int) -> int:
    """Print why a command has failed, as JSON too if it was asked for, and return its exit code."""
    if wants_json(options):
        # Standard output may be what has failed.
        with contextlib.suppress(OSError):
            print_error(sentence, code)
    _say(escaped(redacted(sentence if code == INTERRUPTED else f"error: {sentence}")))
    return code


def _system_error(error: Exception) -> str | None:
    """Return the sentence for a full disk, a lack of memory or rights, or a lost database; None for other errors."""
    from tokenuq_ml.out_of_memory import memory_sentence, ran_out
    from tokenuq_ml.permissions import not_permitted
    from tokenuq_ml.tables.partitions import store_folder
    from tokenuq_pipeline.runtime.dagster_settings import records_failure
    from tokenuq_pipeline.runtime.full_disks import full_disk_of_run
    from tokenuq_pipeline.runtime.readers import file_of_output, why_lost

    output = file_of_output()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and output is not None and not output.is_file():
        return f"{why_lost(error)}: {output}"
    if sentence := not_permitted(error, *filter(None, [os.environ.get("DAGSTER_HOME")])):
        return sentence
    sentence = full_disk_of_run(error, *([output] if output else []), store_folder())
    if sentence is None and ran_out(error):
        sentence = memory_sentence("tokenuq", "")
    return sentence or records_failure(error)


def _open_closed_streams() -> None:
    """Give standard output and error a sink if they were closed (`>&-`): files would get their numbers otherwise."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            sink = os.open(os.devnull, os.O_RDWR)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Let what is left in the buffer of standard output go nowhere, where Python flushes it at exit."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)


if __name__ == "__main__":
    sys.exit(main())
