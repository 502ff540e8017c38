"""Child process of `datasets/<dataset>` with `from` and `curated_by`: another dataset, as a reviewed file decided.

Keeps splits and provenance. Rows with `keep: false` are in the table `rejected_rows`.
"""

from pathlib import Path

import pyarrow as pa

from tokenuq_ml.data.curation import KEEP_FALSE, LeftOut, curated, read_review
from tokenuq_ml.data.examples import Example, rows_by_split
from tokenuq_ml.data.sources.fingerprint import fingerprint
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `examples` and `rejected_rows`."""
    asset = request.assets["datasets"]
    name, made_from, file = asset.fields["name"], asset.fields["from"], Path(request.inputs["curation"])
    if not file.is_file():
        raise InputError(f"{file}: no such file; restore it, or remove dataset {name} from datasets.yaml")
    version, review = fingerprint(file, [file]), read_review(file)
    rows = read_table(request.inputs[f"examples/{made_from}"]).iter_rows(named=True)
    found = list(curated(map(Example.from_row, rows), review, made_from, name))
    examples = [item for item in found if isinstance(item, Example)]
    left_out = [item for item in found if isinstance(item, LeftOut)]
    if not examples:
        raise InputError(f"{file}: leaves out every example of {made_from}; keep some")
    table = pa.Table.from_pylist([example.row for example in examples], schema=TABLES["examples"].schema)
    digest = write_table(table, "examples", asset.outputs["examples"], **asset.stamp)
    rejected = [
        {
            "number": number,
            "file": file.name,
            "row": item.row,
            "line": None,
            "reason": KEEP_FALSE,
            "detail": item.detail,
        }
        for number, item in enumerate(left_out)
    ]
    schema = TABLES["rejected_rows"].schema
    write_table(
        pa.Table.from_pylist(rejected, schema=schema), "rejected_rows", asset.outputs["rejected_rows"], **asset.stamp
    )
    decisions = review.decisions.values()
    metrics = {
        **rows_by_split(examples),
        "rows_read": len(found),
        "rows_left_out": len(left_out),
        "left_out_keep_false": len(left_out),
        "rows_reviewed": len(decisions),
        "rows_weighted": sum(decision.keep and decision.weight is not None for decision in decisions),
        "rows_masked": sum(decision.keep and bool(decision.mask) for decision in decisions),
        "curation_file": str(file),
        "curation_version": version,
    }
    if review.columns_not_read:
        metrics["columns_not_read"] = ", ".join(review.columns_not_read)
    _report(reporter, name, made_from, file, metrics)
    reporter.done(AssetResult(stage="datasets", data_version=digest, metrics=metrics))


def _report(reporter: StageReporter, name: str, made_from: str, file: Path, metrics: dict) -> None:
    left_out, weighted, masked = (metrics[key] for key in ("rows_left_out", "rows_weighted", "rows_masked"))
    if not (left_out or weighted or masked):
        reporter.warning(
            f"{name}: {file} decides nothing, so that {name} is a copy of {made_from}; fill in keep, weight or mask"
        )
    if "columns_not_read" in metrics:
        reporter.warning(f"{name}: columns of {file} that are not read: {metrics['columns_not_read']}")
    reporter.info(
        f"{name}: {metrics['rows_read'] - left_out:,} of {metrics['rows_read']:,} examples of {made_from}; "
        f"{left_out:,} left out, {weighted:,} weighted, {masked:,} masked in part"
    )


if __name__ == "__main__":
    runner.main(run)
