"""What the run of a study prints when an error ends it: the error, last, and nothing of what it left suspended."""

import errno
import gc
import os
import subprocess
import sys

import pytest

from tokenuq_pipeline.commands.make_assets import quiet_streams
from tokenuq_pipeline.runtime.console import Console


def step():
    """A step that logs as it is closed, where Dagster cannot log any more and says so itself."""
    try:
        yield "event"
    finally:
        os.write(2, b"Exception while writing logger call to event log\n")


def engine(steps, held):
    """Keep a step as a local variable and in a cycle, as Dagster's engine does, and fail."""
    held["steps"], held["itself"] = steps, held
    try:
        for event in steps:
            raise KeyError(event)
    except KeyError as error:
        raise OSError(errno.ENOSPC, "No space left on device") from error


def test_a_step_that_an_error_left_suspended_says_nothing_after_the_error(capfd):
    try:
        with quiet_streams(Console()):
            engine(step(), {})
    except OSError:
        print("error: the disk is full", file=sys.stderr, flush=True)
    # The error is forgotten, and what it held is deleted.
    gc.collect()
    assert capfd.readouterr().err == "error: the disk is full\n"


def test_the_traceback_of_a_bug_keeps_its_lines():
    with pytest.raises(KeyError) as raised, quiet_streams(Console()):
        {}["bug"]
    assert raised.traceback[-1].lineno + 1 == test_the_traceback_of_a_bug_keeps_its_lines.__code__.co_firstlineno + 2


def test_lines_that_nobody_reads_on_standard_error_stay_out_of_the_json():
    code = (
        "import os\n"
        "from tokenuq_pipeline.commands.make_assets import quiet_streams\n"
        "from tokenuq_pipeline.runtime.console import Console\n"
        "read, write = os.pipe()\n"
        "os.dup2(write, 2), os.close(write), os.close(read)\n"
        "console = Console()\n"
        "with quiet_streams(console, on_stderr=True):\n"
        "    console.line('progress'), console.line('more')\n"
        "print('{}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout == "{}\n"
