"""The child process of `tokenuq export`: its progress on standard error, its result as a value."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenuq_ml.stages.thread_waits import thread_waits
from tokenuq_pipeline.commands import FAILED, INTERRUPTED, USAGE
from tokenuq_pipeline.commands.export_source import Source

MODULE = "tokenuq_ml.stages.export_model"
CODES = {2: USAGE, 130: INTERRUPTED}
"""Exit code of a stage -> of the command; others are failures."""


def run_program(source: Source, folder: Path) -> tuple[int, dict[str, Any] | None]:
    """Fill an empty folder; return the exit code, and the result if the program has succeeded.

    It prints its errors itself, stops by the Ctrl-C that this process gets too, and ends with this process.
    """
    with tempfile.TemporaryDirectory(prefix="tokenuq-export-") as work:
        request = Path(work, "request.json")
        source.request(folder, Path(work)).write(request)
        child = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(request)],
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **thread_waits(os.environ), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"},
        )
        try:
            result = _read(child)
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            return INTERRUPTED, None
        finally:
            # Still runs where this process is ended by a signal, or can print no more.
            child.terminate()
            child.wait()
    if code:
        return CODES.get(code, FAILED), None
    if result is None:
        print("error: the program ended without a result", file=sys.stderr)
        return FAILED, None
    return 0, result


def _read(child: subprocess.Popen) -> dict[str, Any] | None:
    """Print the program's messages as they come, and return its result: the lines of one JSON object."""
    assert child.stdout is not None
    lines: list[str] = []
    for line in child.stdout:
        if lines or line.rstrip() == "{":
            lines.append(line)
        else:
            print(line, end="", file=sys.stderr, flush=True)
    return json.loads("".join(lines)) if lines else None
