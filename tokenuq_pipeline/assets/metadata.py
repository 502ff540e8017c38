"""What the UI shows of an asset: column schemas before it is made; figures, previews and plots after.

Reads published tables with polars.
"""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.lineage import column_lineage
from tokenuq_pipeline.assets.tracking import is_run, shown_run
from tokenuq_pipeline.runtime.bucket_store import fetch
from tokenuq_pipeline.runtime.manifest import Manifest, Provenance
from tokenuq_pipeline.runtime.markdown import plain
from tokenuq_pipeline.runtime.store import Store

if TYPE_CHECKING:
    import polars as pl

PREVIEW_ROWS = 5
COMPLETE_TABLE_ROWS = 20
"""A table with no more rows is shown completely."""
CELL_CHARACTERS = 60
PLOT_BYTES = 200_000
"""A larger picture would bloat the event log, which every page of the UI reads."""

Metadata = dict[str, Any]


def definition(asset: StageAsset) -> Metadata:
    """Return metadata that is known before the asset is made: the columns of its tables."""
    entries: Metadata = {}
    if asset.table:
        entries["dagster/column_schema"] = column_schema(asset.table)
        entries["dagster/table_name"] = asset.table
    for table in dict.fromkeys(asset.tables.values()):
        if table != asset.table:
            entries[f"{table}_columns"] = column_schema(table)
    return entries


def column_schema(table: str) -> dg.TableSchema:
    """Return the table's columns with types and meanings."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, "string" if dtype == "category" else dtype, description=meaning)
            for name, (dtype, meaning) in TABLES[table].columns.items()
        ]
    )


def materialization(asset: StageAsset, manifest: Manifest, store: Store) -> Metadata:
    """Return metadata of a published asset: figures, plots, pages, previews, paths, then provenance."""
    import polars as pl

    fetch(store, asset.name, lambda path: _is_shown(path, asset))
    entries: Metadata = {
        key: shown_run(str(value)) if is_run(key) else value
        for key, value in manifest.metrics.items()
        if value is not None
    }
    for title, picture in manifest.plots.items():
        output, _, file = picture.partition("/")
        entries[title] = plot(store.path(asset.outputs[output]) / file)
    for output in asset.outputs.values():
        entries |= {f"{path.stem}_page": page(path) for path in store.path(output).glob("*.html")}
    for table, frame in _tables(asset, store).items():
        is_main = table == asset.table
        # Of a large table, its footer and the row groups of the first rows are read.
        rows, first = frame.select(pl.len()).collect().item(), frame.head(COMPLETE_TABLE_ROWS).collect()
        entries["dagster/row_count" if is_main else f"{table}_rows"] = rows
        entries["preview" if is_main else f"{table}_preview"] = preview(first, rows)
    for output, path in asset.outputs.items():
        name = "path" if len(asset.outputs) == 1 else f"path_{output}"
        entries[name] = dg.MetadataValue.path(str(store.path(path)))
    if (lineage := column_lineage(asset)) is not None:
        entries["dagster/column_lineage"] = lineage
    entries["spec"] = dg.MetadataValue.json(asset.fields)
    entries["spec_hash"] = manifest.spec_hash
    entries["input_data_versions"] = dg.MetadataValue.json(manifest.input_data_versions)
    return entries | _provenance(manifest.provenance)


def _is_shown(path: str, asset: StageAsset) -> bool:
    """Return whether a file of an asset is read here: of tables, pictures and pages."""
    tables = tuple(f"{asset.outputs[output]}/" for output in asset.tables)
    return path.endswith((".png", ".html")) or path.startswith(tables)


def _tables(asset: StageAsset, store: Store) -> "dict[str, pl.LazyFrame]":
    """Return the asset's tables; outputs of one table (of base model and teacher) are concatenated."""
    import polars as pl

    frames: dict[str, pl.LazyFrame] = {}
    for output, table in asset.tables.items():
        frame = pl.scan_parquet(store.path(asset.outputs[output]) / "part-*.parquet", hive_partitioning=False)
        row = output.removeprefix(table).removeprefix("_")
        if row:
            frame = frame.select(pl.lit(row).alias("ablation"), pl.all())
        frames[table] = pl.concat([frames[table], frame]) if table in frames else frame
    return frames


def _provenance(provenance: Provenance) -> Metadata:
    # Dagster itself shows the run and the time.
    entries: Metadata = {"packages": dg.MetadataValue.json(provenance.packages)}
    shown = provenance.model_dump(include={"seed", "git_commit", "git_dirty"}, exclude_none=True)
    return entries | shown


def preview(frame: "pl.DataFrame", total: int | None = None) -> dg.MarkdownMetadataValue:
    """Return the first rows as a Markdown table; all rows if the table is short.

    Args:
        frame: the table, or its first COMPLETE_TABLE_ROWS rows.
        total: rows of the table; by default those of `frame`.
    """
    total = len(frame) if total is None else total
    rows = frame.head(COMPLETE_TABLE_ROWS if total <= COMPLETE_TABLE_ROWS else PREVIEW_ROWS)
    lines = ["| " + " | ".join(map(plain, rows.columns)) + " |", "|" + " --- |" * rows.width]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows.iter_rows()]
    if len(rows) < total:
        lines.append(f"\n{total:,} rows in total")
    return dg.MetadataValue.md("\n".join(lines))


def plot(path: Path) -> dg.MarkdownMetadataValue:
    """Return a PNG embedded in the metadata, or a note if it is missing or too large."""
    if not path.is_file():
        return dg.MetadataValue.md(f"{plain(path.name)} was not drawn")
    content = path.read_bytes()
    if len(content) > PLOT_BYTES:
        size = f"{len(content) // 1000} kB"
        return dg.MetadataValue.md(f"{plain(path.name)} has {size}, too large to show here: see {plain(str(path))}")
    return dg.MetadataValue.md(f"![{plain(path.stem)}](data:image/png;base64,{base64.b64encode(content).decode()})")


def page(path: Path) -> dg.PathMetadataValue:
    """Return the address of an HTML page, which a click copies.

    Not a link: browsers do not follow one from the UI, which is http, to a file.
    """
    return dg.MetadataValue.path(path.as_uri())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        shown = plain(_cut(", ".join(str(item) for item in value[:6])))
        return f"[{shown}, … {len(value)} in total]" if len(value) > 6 else f"[{shown}]"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # After the cut: an escape must not be cut in half.
    return plain(_cut(text))


def _cut(text: str) -> str:
    text = text.replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥")
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"
