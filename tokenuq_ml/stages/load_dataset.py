"""Child process of `datasets/<dataset>`: read or generate the examples; store them, and the rows that were left out."""

import itertools
from collections import Counter
from pathlib import Path

import pyarrow as pa

from tokenuq_ml.config import SPLITS, DatasetSpec
from tokenuq_ml.data.generated import load_documents
from tokenuq_ml.data.language.documents import read_language
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.mix import load_mix
from tokenuq_ml.data.sources.rejected_rows import RejectedRows
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import TableWriter, write_table
from tokenuq_ml.tables.schemas import TABLES

_ROWS_PER_WRITE = 10_000


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `examples` and `rejected_rows`."""
    asset = request.assets["datasets"]
    spec = DatasetSpec(**asset.fields)
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    if spec.language is not None:
        language = read_language(spec.language, request.inputs[f"examples/{spec.language}"])
        loaded = load_documents(spec, language)
    elif spec.mix is None:
        loaded = load_examples(spec, request.work_dir, reporter.info)
    else:
        tables = {name: request.inputs[f"examples/{name}"] for name in spec.mix}
        loaded = load_mix(spec, tables, request.work_dir, reporter.info)
    rows = [example.row for example in loaded.examples]
    table = pa.Table.from_pylist(rows, schema=TABLES["examples"].schema)
    digest = write_table(table, "examples", asset.outputs["examples"], **asset.stamp)
    _write_rejected(loaded.rejected, asset)
    for warning in loaded.warnings:
        reporter.warning(f"{spec.name}: {warning}")
    if "truncated" in loaded.metrics:
        reporter.warning(f"{spec.name}: {loaded.metrics['truncated']}; these rows are used (on_truncated: keep)")
    if loaded.rejected.count:
        reporter.warning(f"{spec.name}: {loaded.rejected.summary}; the first:\n{loaded.metrics['left_out']}")
    drawn = Counter(example.split for example in loaded.examples)
    reporter.info(f"{spec.name}: {', '.join(f'{drawn[split]:,} {split}' for split in SPLITS if split in drawn)}")
    reporter.done(AssetResult(stage="datasets", data_version=digest, metrics=loaded.metrics))


def _write_rejected(rejected: RejectedRows, asset: AssetRequest) -> None:
    schema, rows = TABLES["rejected_rows"].schema, rejected.rows()
    with TableWriter("rejected_rows", asset.outputs["rejected_rows"], **asset.stamp) as writer:
        while part := list(itertools.islice(rows, _ROWS_PER_WRITE)):
            writer.append(pa.Table.from_pylist(part, schema=schema))


if __name__ == "__main__":
    runner.main(run)
