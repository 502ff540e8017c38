"""Imported first by the process that the steps of a run are forked from: it leaves the terminal's process group.

Ctrl-C reaches every process of the terminal's group. The run's own process interrupts its steps; a second interrupt,
from the terminal, would kill their stages before they have written a checkpoint. Does nothing in any other process.
"""

import os
import sys


def is_fork_server(arguments: list[str]) -> bool:
    """Return whether a command line is that of the server of `multiprocessing`, and of what is forked from it."""
    return any("multiprocessing.forkserver" in argument for argument in arguments)


if is_fork_server(sys.orig_argv):
    os.setpgid(0, 0)
