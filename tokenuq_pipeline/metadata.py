"""What the UI shows of a materialisation: counts, a preview, key figures, plots, where it lies.

Only presents; reads published files and never changes them.
"""

import base64
import functools
import subprocess
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.stages import AssetResult
from tokenuq_ml.tables import TABLES
from tokenuq_pipeline.nodes import OUTPUTS, Node
from tokenuq_pipeline.store import Manifest, Store

PLOT_BYTES_CAP = 200_000
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 60


def column_schema(table: str) -> dg.TableSchema:
    """A table's columns with their types and meanings, for the asset's definition."""
    return dg.TableSchema(columns=[
        dg.TableColumn(name, _type_name(dtype), description=meaning)
        for name, (dtype, meaning) in TABLES[table].columns.items()
    ])


def _type_name(dtype: pa.DataType) -> str:
    return "string (dictionary)" if pa.types.is_dictionary(dtype) else str(dtype)


def definition_metadata(node: Node) -> dict:
    """Metadata of the asset's definition."""
    return {"dagster/column_schema": column_schema(node.table)} if node.table else {}


def materialisation_metadata(store: Store, node: Node, result: AssetResult, manifest: Manifest) -> dict:
    """Metadata of one materialisation."""
    metadata: dict = {name: _value(value) for name, value in result.metrics.items() if value is not None}
    if node.table:
        first = store.path(node, next(o for o in OUTPUTS[node.stage] if o.startswith(node.table)))
        rows = sum(pq.read_metadata(path).num_rows for path in first.glob("part-*.parquet"))
        metadata["dagster/row_count"] = rows
        metadata["preview"] = dg.MetadataValue.md(preview(first))
    for title, name in result.plots.items():
        output, file = name.split("/", 1)
        metadata[title] = _plot(store.path(node, output) / file)
    for output in OUTPUTS[node.stage]:
        path = store.path(node, output)
        if path.exists():
            metadata[f"path_{output}"] = dg.MetadataValue.path(str(path))
    if node.stage == "ablation_report":
        page = store.path(node, "report") / "report.html"
        metadata["report"] = dg.MetadataValue.url(page.resolve().as_uri())
    metadata["spec"] = dg.MetadataValue.json(manifest.fields)
    metadata["spec_hash"] = manifest.spec_hash
    metadata["git_commit"] = git_commit()
    return metadata


def _value(value):
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(str(value))


def preview(folder: Path) -> str:
    """The first rows of a table as Markdown."""
    frame = pl.scan_parquet(folder / "part-*.parquet", hive_partitioning=False).head(PREVIEW_ROWS).collect()
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.iter_rows()]
    return "\n".join(lines)


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = repr(value) if isinstance(value, str) and value != value.strip() else str(value)
    text = text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + "…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "↵").replace("<", "&lt;").replace("`", "\\`")


def _plot(path: Path):
    if path.stat().st_size > PLOT_BYTES_CAP:
        return dg.MetadataValue.path(str(path))
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})")


@functools.cache
def git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; `unknown` outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
