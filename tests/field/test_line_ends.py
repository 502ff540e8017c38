"""Line ends and byte order marks of other systems, and files that were joined."""

import csv
import json
import random
import re

import pytest

from tests.support.tiny_datasets import chat
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.curation import read_review
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources import data_stream
from tokenuq_ml.data.sources.fingerprint import why_incomplete
from tokenuq_ml.errors import InputError

ROWS = [json.dumps(chat(f"Q{n} \u2028 \x85 \x0b", f"A{n}\r\n"), ensure_ascii=False) for n in range(30)]
ENDS = {"unix": "\n", "windows": "\r\n", "old mac": "\r"}
BOM = "\ufeff"


def loaded(path, format="messages", **keys):
    return load_examples(DatasetSpec(name="d", format=format, path=str(path), sizes="all", **keys))


def questions(path, **keys) -> list[str]:
    data = loaded(path, **keys)
    assert data.metrics["rows_broken"] == 0
    return sorted((one.messages[0]["content"] for one in data.examples), key=lambda text: int(text[1:].split()[0]))


EXPECTED = [json.loads(row)["messages"][0]["content"] for row in ROWS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_json_lines_with_any_line_end(tmp_path, end, last, encoding):
    """Before: a file with carriage returns was one line that is no JSON, and never complete for the sensor."""
    path = tmp_path / "d.jsonl"
    path.write_bytes((end.join(ROWS) + end * last).encode(encoding))
    assert questions(path) == EXPECTED and why_incomplete([path]) is None


def test_json_lines_with_mixed_line_ends_and_marks_between_joined_files(tmp_path, monkeypatch):
    path, draw = tmp_path / "d.jsonl", random.Random(0)
    text = "".join((BOM if n % 10 == 0 else "") + row + draw.choice([*ENDS.values()]) for n, row in enumerate(ROWS))
    path.write_bytes(text.encode())
    assert questions(path) == EXPECTED
    # Chunks that end between a carriage return and its line feed.
    for chunk in (17, 18, 19, 64):
        monkeypatch.setattr(data_stream, "CHUNK", chunk)
        with data_stream.open_lines(path) as file:
            assert file.read() == re.sub("\r(?!\n)", "\n", text).encode()
        assert questions(path) == EXPECTED


def test_lone_carriage_returns_of_a_cut_file_are_lines(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes("\r".join(ROWS).encode()[:-9])
    with pytest.raises(InputError, match=r"begins at line 30 \(byte [\d,]+\); the 29 before it are complete"):
        loaded(path)
    assert why_incomplete([path]) is not None


def test_a_json_list_with_carriage_returns_counts_lines(tmp_path):
    path = tmp_path / "d.json"
    path.write_text("[\r" + ",\r".join([*ROWS, "{'x': 1}"]) + "\r]", newline="")
    data = loaded(path, max_broken_share=0.1)
    assert len(data.examples) == 30 and next(iter(data.rejected.rows()))["line"] == 32


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_csv_with_any_line_end_keeps_carriage_returns_in_cells(tmp_path, end):
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("prompt", "completion"), *((f"Q{n} \u2028 \r x", "A") for n in range(5))])
    assert questions(path, format="prompt_completion") == [f"Q{n} \u2028 \r x" for n in range(5)]
    assert why_incomplete([path]) is None


def test_the_first_row_of_a_joined_csv_file_is_no_example(tmp_path):
    """Before: `prompt` was trained to be answered with `completion`."""
    path = tmp_path / "d.csv"
    path.write_text(f"{BOM}prompt,completion\nQ0,A\n{BOM}prompt,completion\nQ1,A\n")
    data = loaded(path, "prompt_completion")
    assert sorted(one.messages[0]["content"] for one in data.examples) == ["Q0", "Q1"]
    ((line, reason),) = [(row["line"], row["reason"]) for row in data.rejected.rows()]
    assert (line, reason) == (3, "repeated header") and data.metrics["rows_broken"] == 0


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_texts_and_reviews_with_any_line_end(tmp_path, end):
    (tmp_path / "d.txt").write_bytes(end.join(["Q0 one", "line two", "", "Q1 two", ""]).encode())
    texts = questions(tmp_path / "d.txt", format="raw_text")
    assert [text.replace("\r", "") for text in texts] == ["Q0 one\nline two", "Q1 two"]
    (tmp_path / "review.csv").write_bytes(end.join([f"{BOM}example_id,keep", "d/1,false", "d/2,", ""]).encode())
    kept = {name: one.keep for name, one in read_review(tmp_path / "review.csv").decisions.items()}
    assert kept == {"d/1": False, "d/2": True}
