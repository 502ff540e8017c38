"""`tokenuq query`: SQL over the store. The wall and the views are `sql.py`'s, the formats `result_formats.py`'s."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenuq_ml.atomic_files import AtomicFile
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import INTERRUPTED
from tokenuq_pipeline.runtime.paths import store_home

FORMATS = {"table": ".txt", "csv": ".csv", "json": ".json", "parquet": ".parquet", "markdown": ".md"}
"""Each format, and the ending of a file's name that asks for it."""


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "query",
        help="SQL over the token tables",
        description="Runs one SELECT (DuckDB's SQL) over the tables of the store: every study and ablation, with both "
        "as columns. It reads what is whole and changes nothing. docs/querying.md has examples.",
    )
    parser.add_argument("sql", nargs="?", metavar="SELECT", help="the query, in quotes")
    parser.add_argument("--schema", action="store_true", help="list tables, columns, types, meanings and row counts")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: what the ending of --output says, else table (long values cut)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all")
    parser.set_defaults(function=query_command)


def query_command(options: argparse.Namespace) -> int:
    """`tokenuq query`."""
    from tokenuq_ml.tables import sql
    from tokenuq_pipeline.commands.query_formats import WRITERS

    if options.schema == (options.sql is not None):
        raise InputError('query: give either a SELECT, as in tokenuq query "SELECT * FROM evaluations", or --schema')
    form, home = _format(options), store_home()
    if options.output and options.output.resolve().is_relative_to(home):
        raise InputError(f"--output {options.output}: lies in the store, which is the pipeline's; name another place")
    try:
        with sql.connect(home) as connection, sql.query_errors():
            if not options.schema:
                result = sql.select(connection, options.sql)
            elif form == "table":
                notes = {"token_uncertainty": noise_text(home)}
                print(schema_text(sql.columns(connection).to_pylist(), sql.descriptions(connection), notes))
                return 0
            else:
                result = connection.from_arrow(sql.columns(connection))
            with _opened(options.output) as stream:
                rows = WRITERS[form](result, stream)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    if options.output:
        print(f"{options.output}: {rows:,} {'row' if rows == 1 else 'rows'}", file=sys.stderr)
    return 0


def noise_text(home: Path) -> list[str]:
    """Return one line per study: how much of its BALD is rounding."""
    from tokenuq_ml.tables.bald_noise import bald_noise
    from tokenuq_ml.tables.partitions import partition_of, complete_files

    files = complete_files(home)
    lines = []
    for study in sorted(partition_of(file, "token_uncertainty")["study"] for file in files["token_uncertainty"]):
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
        lines = [f"{table}: {count:,} {'row' if count == 1 else 'rows'}. {description}"]
        widths = [max(len(row[key]) for row in rows) for key in ("column", "type")]
        for row in rows:
            lines.append(f"  {row['column']:<{widths[0]}}  {row['type']:<{widths[1]}}  {row['meaning']}")
        lines += (f"  {note}" for note in (notes or {}).get(table, ()))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _format(options: argparse.Namespace) -> str:
    endings = {ending: name for name, ending in FORMATS.items()}
    form = options.format or endings.get(options.output.suffix if options.output else "", "table")
    if form == "parquet" and not options.output and sys.stdout.isatty():
        raise InputError("--format parquet: not for a terminal; name a file with --output")
    return form


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a file that takes its name once all rows are written."""
    if output is None:
        sys.stdout.flush()
        with open(os.dup(1), "wb") as stream:
            yield stream
        return
    try:
        writing = AtomicFile(output, durable=False)
    except OSError as error:
        message = f"--output {output}: {error.strerror}; name an existing folder that you may write to"
        raise InputError(message) from None
    try:
        yield writing.file
        writing.commit()
    finally:
        writing.discard()
