"""Data files: which files count, when they are complete, and what their fingerprint depends on."""

import hashlib
import io
import json

import polars as pl
import pyarrow as pa
import pytest

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.fingerprint import fingerprint, signature, why_incomplete
from tokenuq_ml.data.sources.locate import find_files

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


def found(path, **more):
    return find_files(DatasetSpec(name="a", format="gsm8k", path=str(path), sizes={"train": 1}, **more))


def why_incomplete_at(path):
    return why_incomplete([path])


def fingerprint_of(path, **more):
    data = found(path, **more)
    return fingerprint(data.root, data.files)


def signature_of(path):
    data = found(path)
    return signature(data.root, data.files)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_complete_file_is_complete_and_a_cut_one_is_not(tmp_path, name):
    content, path = CONTENTS[name], tmp_path / name
    path.write_bytes(content)
    assert why_incomplete_at(path) is None
    whole_rows = name.endswith((".jsonl", ".csv"))
    # All but white space at the end; the shorter ends of a long file are tried in steps.
    body = len(content.rstrip(b"\n")) if not name.endswith((".parquet", ".arrow", ".csv")) else len(content)
    for end in [*range(0, min(body, 300)), *range(max(0, body - 40), body)]:
        path.write_bytes(content[:end])
        cut = content[:end]
        at_a_row = whole_rows and cut and (cut.endswith(b"\n") or content[end : end + 1] == b"\n")
        if not at_a_row:
            assert why_incomplete_at(path) is not None, end


def test_a_cut_between_rows_of_jsonl_is_not_noticed(tmp_path):
    """Why the sensor also waits until the size stands still."""
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert why_incomplete_at(tmp_path / "a.jsonl") is None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_of_utf16_is_judged_by_its_text(tmp_path, encoding):
    text, path = "\ufeff" + "\n".join(map(json.dumps, ROWS)), tmp_path / "a.jsonl"
    path.write_bytes(text.encode(encoding))
    assert why_incomplete_at(path) is None
    path.write_bytes(text[:-5].encode(encoding))
    assert why_incomplete_at(path) == "a.jsonl does not end with a complete line"
    path.write_bytes(text.encode(encoding)[:-1])
    assert why_incomplete_at(path) == "a.jsonl ends inside a character"


def test_an_empty_file_is_incomplete(tmp_path):
    assert fingerprint(tmp_path, []) is None
    (tmp_path / "a.json").touch()
    assert why_incomplete_at(tmp_path / "a.json") == "a.json is empty"


def test_a_fingerprint_depends_only_on_content(tmp_path):
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("{}\n")
    other.write_text("{}\n")
    assert fingerprint_of(one) == fingerprint_of(other)
    before, folder = signature_of(one), fingerprint_of(tmp_path)
    other.write_text('{"a": 1}\n')
    assert fingerprint_of(one) != fingerprint_of(other) and fingerprint_of(tmp_path) != folder
    assert signature_of(one) == before and signature_of(other) != before
    other.rename(tmp_path / "0.jsonl")
    assert fingerprint_of(tmp_path) not in (folder, None)


def test_a_fingerprint_covers_the_files_that_are_read(tmp_path):
    """Fingerprints of flat folders are those of earlier versions: names and digests in the order of names."""
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text(name)
    digests = [f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("a.jsonl", "b.jsonl")]
    assert fingerprint_of(tmp_path) == hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
    whole, part = fingerprint_of(tmp_path), fingerprint_of(tmp_path, drawn_from={"train": "a"})
    (tmp_path / "notes.txt").write_text("other")
    assert fingerprint_of(tmp_path) == whole
    (tmp_path / "b.jsonl").write_text("other")
    assert fingerprint_of(tmp_path) != whole and fingerprint_of(tmp_path, drawn_from={"train": "a"}) == part
    inner = tmp_path / "inner"
    inner.mkdir()
    whole = fingerprint_of(tmp_path)
    (inner / "a.jsonl.gz").write_bytes(b"x")
    assert fingerprint_of(tmp_path) != whole
