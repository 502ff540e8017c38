"""Text files as rows of `raw_text`: one per paragraph, with its line."""

import gzip

import polars as pl
import pytest

from tests.support.tiny_datasets import write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.errors import InputError

TEXT = "\n\nA first line  \nand a second.\n \n\t\n    indented\n\nTh\u00e9 last\u2028one"
PARAGRAPHS = [(3, "A first line  \nand a second."), (7, "    indented"), (9, "Th\u00e9 last\u2028one")]


def corpus(path, **keys) -> DatasetSpec:
    return DatasetSpec(**{"name": "corpus", "format": "raw_text", "path": str(path), "sizes": "all", **keys})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_is_a_paragraph(tmp_path, encoding, end):
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\n", end).encode(encoding))
    examples = load_examples(corpus(tmp_path / "a.txt")).examples
    assert [(e.source["row"], e.messages) for e in examples] == [
        (row, [{"role": "text", "content": text}]) for row, (_, text) in enumerate(PARAGRAPHS, 1)
    ]
    assert all(example.is_text and example.split == "train" for example in examples)


def test_text_files_of_a_folder_are_read_for_raw_text_only(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("Three.\n")
    write_lines(tmp_path / "c.jsonl", [{"text": "Four."}])
    assert [e.messages[0]["content"] for e in load_examples(corpus(tmp_path)).examples] == [
        *("One.", "Two.", "Three.", "Four.")
    ]
    messages = corpus(tmp_path, format="messages", max_broken_share=1)
    with pytest.raises(InputError, match="holds 0 distinct|no row|broken"):
        load_examples(messages)


def test_texts_in_tables_are_rows(tmp_path):
    rows = {"text": ["One.", "Two, with a comma.", " "], "url": ["x", "y", "z"]}
    pl.DataFrame(rows).write_csv(tmp_path / "a.csv")
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    for file in ("a.csv", "a.parquet"):
        loaded = load_examples(corpus(tmp_path / file, max_broken_share=0.5))
        assert [example.messages[0]["content"] for example in loaded.examples] == rows["text"][:2]
        assert loaded.metrics["broken_empty_text"] == 1 and loaded.metrics["columns_not_read"] == "url (2)"


def test_the_same_text_is_drawn_once_and_never_in_two_splits(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(["Same."] * 3 + [f"Text {i}." for i in range(17)]))
    loaded = load_examples(corpus(tmp_path / "a.txt", sizes={"train": 0.5, "validation": 0.25, "test": 0.25}))
    assert loaded.metrics["rows_left_out"] == 2 and len(loaded.examples) == 18
    kept = load_examples(corpus(tmp_path / "a.txt", sizes={"train": 0.5, "test": 0.5}, duplicates="keep"))
    assert len(kept.examples) == 20
    assert len({example.split for example in kept.examples if example.question == "same."}) == 1


def test_bad_paragraphs_are_broken_rows_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        b"Fine.\n\n\xff\xfe\xfd\n\n" + b"x" * 600_000 + b"\n" + b"y" * 600_000 + b"\n\nFine too."
    )
    loaded = load_examples(corpus(tmp_path / "a.txt", max_broken_share=0.5))
    assert [example.messages[0]["content"] for example in loaded.examples] == ["Fine.", "Fine too."]
    assert [(row["line"], row["reason"]) for row in loaded.rejected.rows()] == [
        *((3, "invalid Unicode"), (5, "text too long"))
    ]
