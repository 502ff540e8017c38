"""`tokenuq ui`: Dagster's web UI behind a guard, with its daemon."""

import argparse
import os
from pathlib import Path

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import redacted

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "ui",
        help="serve the web UI on this machine, with schedules and sensors",
        description="Serves Dagster's web UI with its schedules and sensors until Ctrl-C. Only this machine's own "
        "browser can use it, unless --host says otherwise, which needs a token.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on; default: this machine only"
    )
    parser.add_argument(
        "--port", type=int, default=3000, metavar="N", help="port to listen on, 0 for any free one; default: 3000"
    )
    parser.add_argument(
        "-w", "--workspace", type=Path, metavar="FILE", help="a workspace file of Dagster; default: tokenuq's own"
    )
    parser.add_argument(
        "--with-parent", action="store_true", help="end when the process that started this one ends (for make)"
    )
    parser.set_defaults(function=ui)


def ui(options: argparse.Namespace) -> int:
    """Serve until a signal, and return the exit code."""
    from tokenuq_pipeline.runtime.paths import dagster_home, store_name
    from tokenuq_pipeline.ui.supervisor import supervise

    if not 0 <= options.port < 65536:
        raise InputError(f"--port: must be from 0 to 65535, is {options.port}")
    _check_settings(options.host, options.port)
    if options.workspace is None:
        from tokenuq_pipeline.commands.common import configuration

        # An error in the configuration is one sentence here, and a page of traceback in the UI.
        configuration()
    home = dagster_home()
    print(f"runs in {home}, results in {store_name()}", flush=True)
    return supervise(options.host, options.port, options.workspace, home, options.with_parent, _say)


def _check_settings(host: str, port: int) -> None:
    """Check the token and the hosts before anything starts.

    Raises:
        InputError: one is wrong, or there is no token although other machines can reach the UI.
    """
    from tokenuq_pipeline.ui.hosts import HOSTS_VARIABLE, Hosts
    from tokenuq_pipeline.ui.login import TOKEN_VARIABLE, Login

    Hosts.of(port, os.environ)
    if Login.of(os.environ, port) is None and host not in LOOPBACK:
        raise InputError(
            f"--host {host}: other machines could use the UI without a login: set {TOKEN_VARIABLE} to a secret of 16 "
            f"or more characters, and {HOSTS_VARIABLE} to the names by which they reach this one"
        )


def _say(line: str) -> None:
    try:
        print(escaped(redacted(line)), flush=True)
    except OSError:
        # The terminal, or the reader of our output, is gone. The UI goes on.
        return
