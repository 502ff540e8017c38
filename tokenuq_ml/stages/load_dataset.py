"""Child process of `datasets/<dataset>`: read or make the examples, store them as a table, and what is left out."""

import itertools
from pathlib import Path

import pyarrow as pa

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources.rejected_rows import Rejects
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import TableWriter, write_table
from tokenuq_ml.tables.schemas import TABLES

_ROWS = 10_000


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fills the outputs `examples` and `rejected_rows`."""
    asset = request.assets["datasets"]
    spec = DatasetSpec(**asset.fields)
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    loaded = load_examples(spec, request.work_dir, reporter.info)
    rows = [example.row for example in loaded.examples]
    table = pa.Table.from_pylist(rows, schema=TABLES["examples"].schema)
    digest = write_table(table, "examples", asset.outputs["examples"], **asset.stamp)
    _write_rejects(loaded.rejects, asset)
    if "truncated" in loaded.metrics:
        reporter.warning(f"{spec.name}: {loaded.metrics['truncated']}; went on with those (on_truncated: keep)")
    if loaded.rejects.count:
        reporter.warning(
            f"{spec.name}: left out {loaded.rejects.count:,} rows; the first:\n{loaded.metrics['left_out']}"
        )
    reporter.info(f"{spec.name}: {', '.join(f'{count} {split}' for split, count in spec.sizes.items())}")
    reporter.done(AssetResult(stage="datasets", data_version=digest, metrics=loaded.metrics))


def _write_rejects(rejects: Rejects, asset: AssetRequest) -> None:
    schema, rows = TABLES["rejected_rows"].schema, rejects.rows()
    with TableWriter("rejected_rows", asset.outputs["rejected_rows"], **asset.stamp) as writer:
        while part := list(itertools.islice(rows, _ROWS)):
            writer.append(pa.Table.from_pylist(part, schema=schema))


if __name__ == "__main__":
    runner.main(run)
