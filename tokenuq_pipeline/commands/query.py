"""`tokenuq query`: SQL over the tables of the store.

The sandbox and the views are in `tokenuq_ml/tables/sql.py`, the formats in `query_formats.py`.
"""

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
"""Format -> the suffix of a file name that selects it."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "query",
        help="run SQL over the token tables",
        description="Runs one SELECT statement (DuckDB's SQL) over the tables of the store. Each table holds all "
        "studies and ablations, with `study` and `ablation` as columns. Queries read completed assets only, in a "
        "sandbox. Examples are in docs/querying.md.",
    )
    parser.add_argument("sql", nargs="?", metavar="SELECT", help="the statement, in quotes")
    parser.add_argument("--schema", action="store_true", help="list tables, columns, types, meanings and row counts")
    parser.add_argument(
        "--format", choices=FORMATS, help="default: by the suffix of --output, otherwise table (long values are cut)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the result to this file, which appears when it is complete"
    )
    parser.set_defaults(function=query_command)


def query_command(options: argparse.Namespace) -> int:
    """Run `tokenuq query`."""
    from tokenuq_ml.tables import sql
    from tokenuq_pipeline.commands.query_formats import WRITERS

    if options.schema == (options.sql is not None):
        raise InputError(
            'query: give either a SELECT statement, as in tokenuq query "SELECT * FROM evaluations", or --schema'
        )
    form, home = _format(options), store_home()
    if options.output and options.output.resolve().is_relative_to(home):
        raise InputError(
            f"--output {options.output}: is in the store, which only the pipeline writes to; name another path"
        )
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
    from tokenuq_ml.tables.partitions import complete_files, partition_of

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
        raise InputError("--format parquet: cannot be shown in a terminal; name a file with --output")
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
