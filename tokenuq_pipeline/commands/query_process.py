"""Run a query in a child process with limits, and leave nothing behind, whatever ends it.

The child (`query_child.py`) may write to its spill folder only, and has a limit of memory and of time that the kernel
enforces. This process holds what must be cleaned: the folder, the output file, the child.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.spill import SpillFolder, spill_folder

TIMEOUT_S = 300.0
"""Default limit of a query's time, without what its reader takes (`| less`)."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_LAST_WORDS = 2000


@dataclass(frozen=True)
class Query:
    """What the child is told."""

    home: str
    sql: str
    form: str
    timeout: float
    parent: int = 0
    spill: str = ""
    report: int = -1
    mirrors: bool = False
    """`home` mirrors a bucket, which the child may not reach. The files of the tables that are named are in it."""
    incomplete: tuple[str, ...] = ()
    """Assets of which an object is missing in the bucket."""
    scope: dict[str, list[dict[str, list[str]]]] = field(default_factory=dict)
    """The partitions that are in the mirror, which are all that the query needs; see `tables/partition_scope.py`."""


def run_query(query: Query, output: BinaryIO | None) -> int:
    """Write the result to `output`, by default to standard output, and return the number of rows.

    Raises:
        InputError: the query is refused, fails, or exceeds a limit.
        BrokenPipeError: the reader of standard output is gone.
        KeyboardInterrupt: by Ctrl-C, after the child has ended.
    """
    with spill_folder() as spill:
        code, said, report = _run_child(query, output, spill)
    if "rows" in report:
        return int(report["rows"])
    if report.get("reader_gone"):
        raise BrokenPipeError
    if "error" in report:
        raise InputError(report["error"])
    if code == -signal.SIGALRM:
        raise InputError(
            f"query: stopped after {query.timeout:g} s, the limit of --timeout; a filter on study, ablation or "
            "example_id reads less, and --timeout 0 sets no limit"
        )
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if "bug" in report:
        raise RuntimeError(report["bug"])
    raise InputError(_death(code, said))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as an exception does, so that it cleans up, and then the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored (nohup) stays ignored.
    before = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _end)
    try:
        yield
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ended(BaseException):
    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Once: the second would interrupt the cleaning.
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise _Ended(number)


def _run_child(query: Query, output: BinaryIO | None, spill: SpillFolder) -> tuple[int, str, dict[str, Any]]:
    """Return the child's exit status, the last it wrote to standard error, and its report."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    handed_over = [writing] + ([spill.descriptor] if spill.path else [])
    told = asdict(query) | {"parent": os.getpid(), "spill": str(spill.path or ""), "report": writing}
    with open(reading, "rb") as report, _words(spill) as words:
        try:
            child = subprocess.Popen(
                # -P: the working directory may hold somebody's duckdb.py.
                [sys.executable, "-P", "-m", "tokenuq_pipeline.commands.query_child"],
                stdin=subprocess.PIPE,
                stdout=output if output is not None else None,
                stderr=words,
                env=_environment(),
                pass_fds=handed_over,
            )
        finally:
            os.close(writing)
        try:
            assert child.stdin
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(told).encode())
            # Ends when the child does, however.
            content = report.read()
        finally:
            child.kill()
            code = child.wait()
        words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS))
        return code, words.read().decode(errors="replace"), _parsed(content)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(content)
    except ValueError:
        # The child was killed before or while it wrote.
        return {}
    return report


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Arrow's default allocator reserves a GiB at once, which would count as used; so do the stacks of threads. DuckDB
    # computes; Arrow and polars only turn its rows into text.
    frugal = {"ARROW_DEFAULT_MEMORY_POOL": "system", "ARROW_IO_THREADS": "2", "OMP_NUM_THREADS": "2"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **frugal, "POLARS_MAX_THREADS": "2"}


def _words(spill: SpillFolder) -> BinaryIO:
    """Open a file for what the child writes to standard error; without a folder, it is lost."""
    if spill.path:
        with contextlib.suppress(OSError):
            return open(spill.path / "stderr", "w+b")
    return open(os.devnull, "r+b")


def _death(code: int, said: str) -> str:
    """Return why a child ended that reported nothing."""
    from tokenuq_ml.out_of_memory import ran_out

    if ran_out(said) or code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return (
            f"query: its process ended {how}, most likely because it needed more memory than it may have; filter or "
            "aggregate earlier, or select fewer columns"
        )
    return f"query: its process ended with exit code {code}: {said.strip()[-_LAST_WORDS:] or 'it said nothing'}"
