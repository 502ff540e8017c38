"""`tokenuq query`: SQL over the tables of the store.

The walls and the views are in `tokenuq_ml/tables/sql.py`, the child process in `query_process.py`, the formats in
`query_formats.py`.
"""

import argparse
import contextlib
import fcntl
import glob
import math
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from tokenuq_ml.atomic_files import AtomicFile
from tokenuq_ml.control_characters import escaped, escaped_line
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import INTERRUPTED
from tokenuq_pipeline.commands.query_process import TIMEOUT_S, Query, ended_by_signals, run_query
from tokenuq_pipeline.runtime.paths import store_home

FORMATS = {"table": ".txt", "csv": ".csv", "json": ".json", "parquet": ".parquet", "markdown": ".md"}
"""Format -> the suffix of a file name that selects it."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "query",
        help="run SQL over the token tables",
        description="Runs one SELECT statement (DuckDB's SQL) over the tables of the store. Each table holds all "
        "studies and ablations, with `study` and `ablation` as columns. Queries read completed assets only, write "
        "nothing, and have limits of memory and time. Examples are in docs/querying.md.",
    )
    parser.add_argument("sql", nargs="?", metavar="SELECT", help="the statement, in quotes")
    parser.add_argument("--schema", action="store_true", help="list tables, columns, types, meanings and row counts")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: by the suffix of --output, otherwise table (long values are cut)"
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the result to this file, which appears when it is complete"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help="stop the query after this time; 0 for never; default: %(default)g",
    )
    parser.set_defaults(function=query_command)


def query_command(options: argparse.Namespace) -> int:
    """Run `tokenuq query`."""
    if options.schema == (options.sql is not None):
        raise InputError(
            'query: give either a SELECT statement, as in tokenuq query "SELECT * FROM evaluations", or --schema'
        )
    form, home = _format(options), store_home()
    if options.output:
        require_writable(options.output, home)
    if options.schema and form == "table":
        print(escaped(_schema(home)))
        return 0
    try:
        with ended_by_signals(), _opened(options.output) as stream:
            if options.schema:
                rows = _write_schema(home, form, stream)
            else:
                rows = answer(_prepared(Query(str(home), options.sql, form, options.timeout)), stream)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    if options.output:
        print(escaped_line(f"{options.output}: {rows:,} {'row' if rows == 1 else 'rows'}"), file=sys.stderr)
    return 0


answer = run_query
"""What runs a query: in a child process. Tests run most in their own."""


def _prepared(query: Query) -> Query:
    """Download what a query needs, for its process may not; nothing is done for a store in a folder."""
    from tokenuq_ml.object_store.registry import mirror_of

    home = Path(query.home)
    if mirror_of(home) is None:
        return query
    from tokenuq_ml.tables.fetching import fetch_tables, incomplete_assets, tables_named
    from tokenuq_ml.tables.partition_scope import partition_scope

    scope = partition_scope(query.sql)
    fetch_tables(home, tables_named(query.sql), scope)
    return replace(query, mirrors=True, incomplete=tuple(incomplete_assets(home)), scope=scope)


def _schema(home: Path) -> str:
    from tokenuq_ml.object_store.registry import mirror_of
    from tokenuq_ml.tables import sql

    with sql.connect(home, tables=()) as connection:
        # The noise floor reads two tables, which are not downloaded to be described.
        notes = {"token_uncertainty": noise_text(home)} if mirror_of(home) is None else {}
        return schema_text(sql.columns(connection).to_pylist(), sql.descriptions(connection), notes)


def _write_schema(home: Path, form: str, stream: BinaryIO | None) -> int:
    from tokenuq_ml.tables import sql
    from tokenuq_pipeline.commands.query_formats import WRITERS

    with sql.connect(home, tables=()) as connection, contextlib.ExitStack() as stack:
        if stream is None:
            sys.stdout.flush()
            stream = stack.enter_context(open(os.dup(1), "wb"))
        return WRITERS[form](connection.from_arrow(sql.columns(connection)), stream)


def noise_text(home: Path) -> list[str]:
    """Return one line per study: how much of its BALD is rounding."""
    from tokenuq_ml.tables.bald_noise import bald_noise
    from tokenuq_ml.tables.integrity import damage_of_table
    from tokenuq_ml.tables.partitions import complete_files, partition_of

    files = complete_files(home)
    lines = []
    for study in sorted(partition_of(file, "token_uncertainty")["study"] for file in files["token_uncertainty"]):
        damage = (damage_of_table(home, table, study=study) for table in ("bald_reference", "token_uncertainty"))
        if sentence := next(filter(None, damage), None):
            lines.append(f"noise floor of bald in {study}: {sentence}")
            continue
        noise = bald_noise(home, study)
        if noise is None:
            lines.append(f"noise floor of bald in {study}: not measured; materialise {study}/token_uncertainty again")
            continue
        share = f" ({noise['floor'] / noise['mean_bald']:.2%})" if noise["mean_bald"] else ""
        lines.append(
            f"noise floor of bald in {study}: {noise['floor']:.2g} nats, mean bald {noise['mean_bald']:.2g}{share}, "
            f"on {noise['tokens']:,} tokens of bald_reference"
        )
    return lines


def schema_text(columns: list[dict], descriptions: dict[str, str], notes: dict[str, list[str]] | None = None) -> str:
    """Return a paragraph per table: its name, rows and description, then its columns, then its notes."""
    paragraphs = []
    for table, description in descriptions.items():
        rows = [row for row in columns if row["table"] == table]
        count = rows[0]["rows"]
        counted = "cannot be read here" if count is None else f"{count:,} {'row' if count == 1 else 'rows'}"
        lines = [f"{table}: {counted}. {description}"]
        widths = [max(len(row[key]) for row in rows) for key in ("column", "type")]
        for row in rows:
            lines.append(f"  {row['column']:<{widths[0]}}  {row['type']:<{widths[1]}}  {row['meaning']}")
        lines += (f"  {note}" for note in (notes or {}).get(table, ()))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _seconds(text: str) -> float:
    seconds = float(text)
    # A timer's limit is that of time_t; a century will do.
    if not 0 <= seconds < 3e9 or math.isnan(seconds):
        raise argparse.ArgumentTypeError(f"{text}: give seconds, 0 for no limit")
    return seconds


def _format(options: argparse.Namespace) -> str:
    endings = {ending: name for name, ending in FORMATS.items()}
    form = options.format or endings.get(options.output.suffix if options.output else "", "table")
    if form == "parquet" and not options.output and sys.stdout.isatty():
        raise InputError("--format parquet: cannot be shown in a terminal; name a file with --output")
    return form


def require_writable(output: Path, home: Path, flag: str = "--output") -> None:
    """Raise an InputError unless `output` is a regular file, or a new name, outside the store.

    `flag` is the option that names it. A symbolic link is refused too: it may lead to what must not be replaced, and
    the file would replace the link.
    """
    name = escaped_line(str(output))
    try:
        kind = stat.S_IFMT(output.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        kind = stat.S_IFREG
    except (OSError, ValueError) as error:
        raise InputError(f"{flag} {name}: {getattr(error, 'strerror', None) or error}; name another path") from None
    if kind != stat.S_IFREG:
        raise InputError(
            f"{flag} {name}: is {_KINDS.get(kind, 'a special file')}; name a regular file or a new one, or leave "
            f"{flag} out"
        )
    if any(_is_same(folder, home) for folder in output.absolute().resolve().parents):
        raise InputError(f"{flag} {name}: is in the store, which only the pipeline writes to; name another path")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def _is_same(one: Path, other: Path) -> bool:
    try:
        # By device and inode: the store may be mounted at a second place.
        return one.samefile(other)
    except OSError:
        return False


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO | None]:
    """Open a file that takes its name once all rows are written; None for standard output."""
    if output is None:
        yield None
        return
    _remove_left(output)
    try:
        writing = AtomicFile(output, durable=False)
    except OSError as error:
        message = (
            f"--output {escaped_line(str(output))}: {error.strerror}; name an existing folder that you may write to"
        )
        raise InputError(message) from None
    try:
        fcntl.flock(writing.file, fcntl.LOCK_EX)
        yield writing.file
        writing.commit()
    finally:
        writing.discard()


def _remove_left(output: Path) -> None:
    """Remove what killed queries left of the same file: unlocked, and not of this minute."""
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.writing"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > _LEFT_S:
                left.unlink()


_LEFT_S = 60
