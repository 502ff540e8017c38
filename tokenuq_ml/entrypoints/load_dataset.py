"""Child process of `datasets/<dataset>`: read or make the examples, store them as one table."""

import pyarrow as pa

from tokenuq_ml.datasets import load_examples
from tokenuq_ml.entrypoints import runner
from tokenuq_ml.specs import DatasetSpec
from tokenuq_ml.stages import AssetResult, Reporter, StageRequest
from tokenuq_ml.tables import TABLES, write_table


def run(request: StageRequest, reporter: Reporter) -> None:
    """Fills the output `examples`."""
    asset = request.assets["datasets"]
    spec = DatasetSpec(**asset.fields)
    loaded = load_examples(spec)
    rows = [example.row for example in loaded.examples]
    table = pa.Table.from_pylist(rows, schema=TABLES["examples"].schema)
    digest = write_table(table, "examples", asset.outputs["examples"], **asset.stamp)
    reporter.info(f"{spec.name}: {', '.join(f'{count} {split}' for split, count in spec.sizes.items())}")
    reporter.done(AssetResult(stage="datasets", data_version=digest, metrics=loaded.metrics))


if __name__ == "__main__":
    runner.main(run)
