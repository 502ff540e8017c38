"""The program that runs one query: `python -m tokenuq_pipeline.commands.query_child`, started by `query_process.py`.

Reads what to do from standard input as JSON, writes the result to standard output, and reports by a pipe: the number of
rows, or an error. It limits itself before it imports what runs the query.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenuq_ml.disk_space import in_words, space, temporary_folder
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.registry import SealedMirror
from tokenuq_pipeline.commands.query_process import Query
from tokenuq_pipeline.runtime import confinement
from tokenuq_pipeline.runtime.readers import file_of_output

if TYPE_CHECKING:
    from tokenuq_ml.tables.partition_scope import Scope

MEMORY, MORE_MEMORY = 600 * 2**20, 260 * 2**20
"""DuckDB's limit, beyond which it spills, and what the kernel grants in addition to it and to what the libraries take
(140 MiB): for values that DuckDB does not count, and a result's batches. In all, the process stays below 1 GiB. A sort
that spills was seen to take 140 MiB more than DuckDB's limit."""


def main() -> None:
    """Run the query, report and end."""
    query = Query(**json.loads(sys.stdin.buffer.read()))
    # The terminal sends Ctrl-C to both processes; the parent has the words for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    confinement.end_with_parent(query.parent)
    confinement.no_core_dumps()
    if query.mirrors:
        SealedMirror(Path(query.home), query.incomplete)
    confinement.write_only_in(_writable(query))
    confinement.limit_time(query.timeout)
    with open(query.report, "w") as report:
        json.dump(_report(query), report)
        report.flush()
        # Without the destructors of a database that holds gigabytes: the kernel is faster.
        os._exit(0)


def _report(query: Query) -> dict[str, Any]:
    from tokenuq_ml.disk import full_disk
    from tokenuq_ml.out_of_memory import ran_out

    try:
        with io.BufferedWriter(_Output(1, "wb", closefd=False)) as stream:
            return {"rows": answer(query, stream)}
    except BrokenPipeError:
        return {"reader_gone": True}
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:
        if ran_out(error):
            return {"error": _too_much(error)}
        if message := full_disk(error, *filter(None, [file_of_output(), query.spill])):
            return {"error": message}
        return {"bug": traceback.format_exc()}


def answer(query: Query, stream: Any) -> int:
    """Write the result of a query to a binary stream and return the number of rows."""
    from tokenuq_ml.out_of_memory import ran_out
    from tokenuq_ml.tables import sql
    from tokenuq_ml.tables.spill import SpillFolder
    from tokenuq_pipeline.commands.query_formats import WRITERS, TerminalText

    if stream.isatty() and query.form != "parquet":
        stream = TerminalText(stream)
    spill = SpillFolder(Path(query.spill) if query.spill else None)
    damage_of = partial(_damage_of, scope=query.scope)
    with sql.connect(query.home, f"{MEMORY}B", spill, damage_of, describe=False, scope=query.scope) as connection:
        # After the connection, whose threads have their stacks by now.
        if query.parent:
            confinement.limit_memory(MEMORY + MORE_MEMORY)
        try:
            with sql.query_errors():
                return WRITERS[query.form](sql.select(connection, query.sql), stream)
        except InputError as error:
            cause = error.__cause__
            if cause is not None and ran_out(cause if not isinstance(cause, OSError) else str(cause)):
                raise InputError(_too_much(cause)) from error
            raise


def _damage_of(home: Path, table: str, scope: "Scope") -> str | None:
    """Return why a table must not be read. The time that this takes, once per file, is not the query's."""
    from tokenuq_ml.tables.integrity import damage_of_table

    with _paused():
        found = (damage_of_table(home, table, **partitions) for partitions in scope.get(table, [{}]))
        return next(filter(None, found), None)


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    left = confinement.pause_time()
    try:
        yield
    finally:
        if left:
            confinement.limit_time(left)


def _too_much(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    if "failed to offload" in str(error):
        disk = space(temporary_folder())
        return (
            f"query: needs more space to spill to than {disk} gives it, half of the free {in_words(disk.free)} (at "
            "most 20 GiB); make space there, set TMPDIR to a folder on another disk, or filter or aggregate earlier"
        )
    return (
        f"query: needs more memory than the {_limit()}, for values that cannot be spilled; "
        f"filter or aggregate earlier, or select fewer columns ({words[0] if words else type(error).__name__})"
    )


def _limit() -> str:
    size, _ = resource.getrlimit(resource.RLIMIT_AS)
    if size == resource.RLIM_INFINITY:
        return "1 GiB that its process may have"
    return f"{size // 2**20:,} MiB that `ulimit -v` leaves it (1,500 MiB are enough)"


class _Output(io.FileIO):
    """Standard output. The time that a slow reader takes (`| less`) is not the query's."""

    def write(self, data: Any) -> int | None:
        with _paused():
            return super().write(data)


def _writable(query: Query) -> list[Path]:
    from tokenuq_ml.file_hashes import cache_folder

    # Hashes of verified files are kept there. On a full or read-only disk they are not.
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    return [cache_folder(), *([Path(query.spill)] if query.spill else [])]


if __name__ == "__main__":
    main()
