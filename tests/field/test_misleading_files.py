"""Files that hold no rows, or rows in another form: the error says what they are and what to do."""

import json
import pickle
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tiny_datasets import chat, messages_spec
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.first_rows import why_unusable
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError

ROWS = [chat(f"Q{n}") for n in range(9)]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def refusals(path, format="messages") -> list[str]:
    """Return what `tokenuq plan` and a run say."""
    spec = DatasetSpec(name="d", format=format, path=str(path), sizes="all")
    with pytest.raises(InputError) as caught:
        load_examples(spec)
    return [str(why_unusable(spec)), str(caught.value)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", POINTER, "is a pointer of Git LFS, and not the file itself; run `git lfs pull`"),
        ("d.parquet", POINTER, "is a pointer of Git LFS"),
        ("d.csv", "<!DOCTYPE html>\n<html>404</html>\n", "is a web page, perhaps of an error or a login; download"),
        (
            "d.pkl",
            pickle.dumps(ROWS),
            "is a Python pickle, which is not read because it may run code; save the",
        ),
        ("d.db", b"SQLite format 3\0\x10", "is an SQLite database; export the table as CSV or Parquet"),
        ("d.pdf", b"%PDF-1.4\n", "is a PDF"),
        ("d.jsonl", "", "holds no rows; name a file with examples"),
        ("d.json", "[]", "holds no rows; name a file with examples"),
        ("d.csv", "messages\n", "holds no rows; name a file with examples"),
        ("d.json", json.dumps([row["messages"] for row in ROWS]), 'if it is a list of turns, write it as {"messages":'),
        ("d.jsonl", ",\n".join([*map(json.dumps, ROWS), ""]), "write one per line, without commas between them"),
        ("d.jsonl", "".join(map(json.dumps, ROWS)), "text follows the object on its line: write one per line"),
        ("d.jsonl", json.dumps({"messages": str(ROWS[0]["messages"])}), "written by Python's `str`: use `json.dumps`"),
        ("d.json", json.dumps({"a": {"0": 1}, "b": {"0": 2}}), "write one object per line, or one list of objects"),
    ],
)
def test_what_stands_in_the_place_of_data_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for message in refusals(path):
        assert said in message and str(path) in message
        assert "objects in datasets.yaml" not in message


def test_a_workbook_is_no_archive_to_unpack(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    for message in refusals(tmp_path / "d.xlsx"):
        assert "is a workbook of Excel; save the sheet as CSV (UTF-8)" in message and "unpack" not in message


def test_values_of_another_type_are_named_with_it(tmp_path):
    table = pa.table({"prompt": ["Q0", "Q1"], "completion": [4, 5]})
    pq.write_table(table, tmp_path / "d.parquet")
    for message in refusals(tmp_path / "d.parquet", "prompt_completion"):
        assert "'completion' is not text but int" in message


def test_a_web_page_may_be_raw_text(tmp_path):
    (tmp_path / "d.txt").write_text("<html>\n\nQ\n")
    data = load_examples(DatasetSpec(name="d", format="raw_text", path=str(tmp_path / "d.txt"), sizes="all"))
    assert [one.messages[0]["content"] for one in data.examples] == ["<html>", "Q"]


def test_rows_that_are_read_say_nothing(tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert why_unusable(messages_spec(tmp_path / "d.jsonl")) is None
