"""Data files: which files count, when they are complete, and what their fingerprint depends on."""

import io
import json

import polars as pl
import pyarrow as pa
import pytest

from tokenuq_ml.data.sources.fingerprint import files_of, fingerprint, signature, why_incomplete

ROWS = [{"a": "x" * 20, "b": [{"c": "}"}]} for _ in range(5)]


def arrow_file() -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def arrow_stream() -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(sink)
    return sink.getvalue()


CONTENTS = {
    "a.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode() + b"\n",
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "newline.jsonl": "\n".join(map(json.dumps, ROWS)).encode() + b"\n\n",
    "long.jsonl": json.dumps({"a": "x" * 200_000}).encode() + b"\n",
    "a.csv": b"a,b\n1,2\n",
    "a.parquet": parquet(),
    "a.arrow": arrow_file(),
    "stream.arrow": arrow_stream(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_complete_file_is_complete_and_a_cut_one_is_not(tmp_path, name):
    content, path = CONTENTS[name], tmp_path / name
    path.write_bytes(content)
    assert why_incomplete(path) is None
    whole_rows = name.endswith((".jsonl", ".csv"))
    # All but white space at the end; the shorter ends of a long file are tried in steps.
    body = len(content.rstrip(b"\n")) if not name.endswith((".parquet", ".arrow", ".csv")) else len(content)
    for end in [*range(0, min(body, 300)), *range(max(0, body - 40), body)]:
        path.write_bytes(content[:end])
        cut = content[:end]
        at_a_row = whole_rows and cut and (cut.endswith(b"\n") or content[end : end + 1] == b"\n")
        if not at_a_row:
            assert why_incomplete(path) is not None, end


def test_a_cut_between_rows_of_jsonl_is_not_noticed(tmp_path):
    """Why the sensor also waits until the size stands still."""
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert why_incomplete(tmp_path / "a.jsonl") is None


def test_a_folder_stands_for_its_data_files_sorted_by_name(tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "inner").mkdir()
    assert [file.name for file in files_of(tmp_path)] == ["a.jsonl", "b.jsonl"]
    assert why_incomplete(tmp_path) is None
    (tmp_path / "c.jsonl.part").write_text("{}")
    assert why_incomplete(tmp_path) == "c.jsonl.part is still being written"


def test_missing_and_empty_files_are_incomplete(tmp_path):
    assert files_of(tmp_path / "no") == [] and fingerprint(tmp_path / "no") is None
    assert why_incomplete(tmp_path / "no") == "no data file exists" == why_incomplete(tmp_path)
    (tmp_path / "a.json").touch()
    assert why_incomplete(tmp_path / "a.json") == "a.json is empty"


def test_a_fingerprint_depends_only_on_content(tmp_path):
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("{}\n")
    other.write_text("{}\n")
    assert fingerprint(one) == fingerprint(other)
    before, folder = signature(one), fingerprint(tmp_path)
    other.write_text('{"a": 1}\n')
    assert fingerprint(one) != fingerprint(other) and fingerprint(tmp_path) != folder
    assert signature(one) == before and signature(other) != before
    other.rename(tmp_path / "0.jsonl")
    assert fingerprint(tmp_path) not in (folder, None)
