"""The child process `curate_dataset`: tables, counts, and sentences on bad input."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.reporter import RecordingReporter
from tests.support.tokenizing import turns
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.sources.fingerprint import fingerprint
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import curate_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES

SPLITS = ("train", "train", "validation", "test")


def run(folder: Path, review: str):
    """The stage on four examples of the dataset `d`; returns both tables and the reporter."""
    rows = [
        Example(f"d/{n:06d}", split, turns(f"{n}?", f"It is {n}."), {"row": n}).row for n, split in enumerate(SPLITS)
    ]
    table = pa.Table.from_pylist(rows, schema=TABLES["examples"].schema)
    write_table(table, "examples", folder / "d", spec_hash="x", code_version="1")
    (folder / "reviewed.csv").write_text(review)
    outputs = {name: str(folder / name) for name in ("examples", "rejected_rows")}
    fields = {"name": "clean", "from": "d", "curated_by": "reviewed"}
    request = StageRequest(
        entrypoint="curate_dataset",
        assets={"datasets": AssetRequest(fields=fields, code_version="1-x", outputs=outputs)},
        inputs={"examples/d": str(folder / "d"), "curation": str(folder / "reviewed.csv")},
        work_dir=str(folder / "work"),
    )
    recorder = RecordingReporter()
    curate_dataset.run(request, recorder)
    return *(read_table(path) for path in outputs.values()), recorder


def test_kept_rows_keep_splits_and_provenance_and_the_others_are_listed(tmp_path):
    reviewed = tmp_path / "reviewed.csv"
    review = "example_id,keep,weight,mask,reasons,remark\nd/000001,false,,,wrong sum,x\nd/000000,,0.5,0-2,,\n"
    examples, rejected, recorder = run(tmp_path, review)
    assert examples["example_id"].to_list() == ["clean/000000", "clean/000002", "clean/000003"]
    assert examples["split"].to_list() == ["train", "validation", "test"]
    first = Example.from_row(examples.row(0, named=True))
    assert first.turn_weights == [0.0, 0.5] and first.untrained_spans == [[1, 0, 2]]
    assert first.source == {"row": 0, "curated_from": "d/000000"}
    assert rejected.rows() == [(0, "reviewed.csv", 1, None, "curated: keep is false", "d/000001: wrong sum")]
    (result,) = recorder.results
    expected = {
        "rows_train": 1,
        "rows_read": 4,
        "rows_left_out": 1,
        "left_out_keep_false": 1,
        "rows_reviewed": 2,
        "rows_weighted": 1,
        "rows_masked": 1,
        "columns_not_read": "remark",
        "curation_version": fingerprint(reviewed, [reviewed]),
    }
    assert expected.items() <= result.metrics.items()
    assert any("columns" in line and "remark" in line for line in recorder.lines)


def test_a_file_without_decisions_gives_a_copy_and_a_warning(tmp_path):
    examples, rejected, recorder = run(tmp_path, "example_id,keep\nd/000001,\n")
    assert len(examples) == 4 and rejected.is_empty()
    assert any("decides nothing" in line for line in recorder.lines)


def test_a_dataset_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="reviewed.csv: leaves out every example of d; keep some"):
        run(tmp_path, "example_id,keep\n" + "".join(f"d/{n:06d},false\n" for n in range(4)))
