"""What the UI shows of an asset: column schemas before, figures, previews and plots after it is made.

Reads published tables with polars; does not know how they came to be.
"""

import base64
import json
from pathlib import Path

import dagster as dg
import polars as pl

from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.lineage import column_lineage
from tokenuq_pipeline.runtime.store import Store

PREVIEW_ROWS = 5
WHOLE_TABLE_ROWS = 20
CELL_CHARACTERS = 60
PLOT_BYTES = 200_000
"""A larger picture would swell the event log, which every page of the UI reads."""


def definition(asset: StageAsset) -> dict:
    """Metadata that is known before anything is made."""
    entries: dict = {}
    if asset.table:
        entries["dagster/column_schema"] = column_schema(asset.table)
        entries["dagster/table_name"] = asset.table
    for table in dict.fromkeys(asset.tables.values()):
        if table != asset.table:
            entries[f"{table}_columns"] = column_schema(table)
    return entries


def column_schema(table: str) -> dg.TableSchema:
    """The table's columns with types and meanings."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, _type_name(dtype), description=meaning)
            for name, (dtype, meaning) in TABLES[table].columns.items()
        ]
    )


def materialization(asset: StageAsset, manifest: dict, store: Store) -> dict:
    """Metadata of what was published, by its manifest: figures, plots, previews, then its provenance."""
    entries: dict = {key: value for key, value in manifest["metrics"].items() if value is not None}
    for title, place in manifest["plots"].items():
        output, _, file = place.partition("/")
        entries[title] = plot(store.path(asset.outputs[output]) / file)
    for place in asset.outputs.values():
        entries |= {f"{path.stem}_page": page(path) for path in store.path(place).glob("*.html")}
    previews: dict[str, pl.DataFrame] = {}
    for output, table in asset.tables.items():
        frame = read_table(store.path(asset.outputs[output]))
        row = output.removeprefix(table).removeprefix("_")
        if row:
            frame = frame.select(pl.lit(row).alias("ablation"), pl.all())
        previews[table] = pl.concat([previews[table], frame]) if table in previews else frame
    for table, frame in previews.items():
        if table == asset.table:
            entries["dagster/row_count"] = len(frame)
            entries["preview"] = preview(frame)
        else:
            entries[f"{table}_rows"] = len(frame)
            entries[f"{table}_preview"] = preview(frame)
    places = list(asset.outputs.items())
    for output, place in places:
        entries["path" if len(places) == 1 else f"path_{output}"] = dg.MetadataValue.path(str(store.path(place)))
    if (lineage := column_lineage(asset)) is not None:
        entries["dagster/column_lineage"] = lineage
    entries["spec"] = dg.MetadataValue.json(asset.fields)
    entries["spec_hash"] = manifest["spec_hash"]
    entries["input_data_versions"] = dg.MetadataValue.json(manifest["input_data_versions"])
    provenance = dict(manifest["provenance"])
    entries["packages"] = dg.MetadataValue.json(provenance.pop("packages"))
    return entries | {key: value for key, value in provenance.items() if key not in ("run_id", "made_at")}


def preview(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table; short tables whole."""
    rows = frame.head(WHOLE_TABLE_ROWS if len(frame) <= WHOLE_TABLE_ROWS else PREVIEW_ROWS)
    lines = ["| " + " | ".join(rows.columns) + " |", "|" + " --- |" * rows.width]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows.iter_rows()]
    if len(rows) < len(frame):
        lines.append(f"\n{len(frame):,} rows in all")
    return dg.MetadataValue.md("\n".join(lines))


def plot(path: Path) -> dg.MarkdownMetadataValue:
    """A PNG inside the metadata itself, or a note where it is too large for that."""
    if not path.is_file():
        return dg.MetadataValue.md(f"{path.name} was not drawn")
    content = path.read_bytes()
    if len(content) > PLOT_BYTES:
        return dg.MetadataValue.md(f"{path.name} has {len(content) // 1000} kB, too large to show here: see `{path}`")
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{base64.b64encode(content).decode()})")


def page(path: Path) -> dg.PathMetadataValue:
    """The address of an HTML page, to be copied by a click.

    Not a link: browsers refuse to follow one from the UI, which is http, to a file.
    """
    return dg.MetadataValue.path(path.as_uri())


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        shown = ", ".join(str(item) for item in value[:6])
        text = f"[{shown}, … {len(value)} in all]" if len(value) > 6 else f"[{shown}]"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("\\", "\\\\").replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥")
    if len(text) > CELL_CHARACTERS:
        text = text[: CELL_CHARACTERS - 1] + "…"
    # After the cut: an escape must not be cut in half. A code span would show the escape itself.
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "&#96;").replace("*", "&#42;")


def _type_name(dtype) -> str:
    text = str(dtype)
    return "string" if text.startswith("dictionary") else text.replace("element: ", "").replace("item: ", "")
