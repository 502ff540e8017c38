"""Text files are read alike whatever compression and encoding they have; those that cannot be read are named."""

import bz2
import gzip
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pytest

from tokenuq_ml.data.sources.csv_records import csv_rows
from tokenuq_ml.data.sources.data_stream import open_data
from tokenuq_ml.data.sources.json_records import is_list, json_lines, json_list
from tokenuq_ml.data.sources.records import TruncatedFile
from tokenuq_ml.errors import InputError

ROWS = [{"q": f"é \u2028 𝄞 {i} {i * 7919}", "a": f"A{i}"} for i in range(1500)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def arrow_codec(name: str):
    def compress(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, name) as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": arrow_codec("zstd"),
    "lz4": arrow_codec("lz4"),
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_compression_and_encoding_gives_the_same_rows(tmp_path, ending, encoding):
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(COMPRESS[ending](LINES.encode(encoding)))
    assert [record.value for record in json_lines(path)] == ROWS and not is_list(path)
    path.write_bytes(COMPRESS[ending](json.dumps(ROWS, ensure_ascii=False).encode(encoding)))
    assert is_list(path) and [record.value for record in json_list(path)] == ROWS


@pytest.mark.parametrize("ending", COMPRESS)
def test_parts_that_are_compressed_one_by_one_are_read_together(tmp_path, ending):
    """As `cat a.gz b.gz` gives them; a name without the ending changes nothing."""
    half = len(LINES) // 2
    (tmp_path / "a").write_bytes(b"".join(COMPRESS[ending](part.encode()) for part in (LINES[:half], LINES[half:])))
    assert [record.value for record in json_lines(tmp_path / "a")] == ROWS


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_cut_file_keeps_its_complete_rows(tmp_path, ending):
    rows = [{"q": i, "a": str(i * i * 7919)} for i in range(20_000)]
    path, content = tmp_path / f"a.jsonl.{ending}", COMPRESS[ending]("\n".join(map(json.dumps, rows)).encode())
    path.write_bytes(content[: int(len(content) * 0.9)])
    values = []
    with pytest.raises(TruncatedFile) as caught:
        for record in json_lines(path):
            values.append(record.value)
    assert len(values) == caught.value.complete < len(rows) and values == rows[: len(values)]
    # bzip2 unpacks blocks of 900 kB.
    assert values or ending == "bz2"


def test_a_cut_between_two_rows_of_a_compressed_file_is_noticed(tmp_path):
    """Unlike one of a plain file: the compression says that more must follow."""
    content = gzip.compress(LINES.encode(), compresslevel=0)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content[:-8])
    with pytest.raises(TruncatedFile, match=r"the 1,500 before it are complete"):
        list(json_lines(path))
    text = "q,a\n" + "x,y\n" * 50
    path.write_bytes(gzip.compress(text.encode())[:-8])
    with pytest.raises(TruncatedFile, match=r"line 52; the 50 before it are complete"):
        list(csv_rows(path))


def test_damaged_compression_is_named(tmp_path):
    content = bytearray(gzip.compress(LINES.encode()))
    content[len(content) // 2] ^= 255
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: its gzip compression is damaged after byte [\d,]+ .*copy the"):
        list(json_lines(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_named(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("q,a\n1,2\n".encode(encoding))
    with pytest.raises(InputError, match=rf"a\.csv: is {encoding.upper()} without a byte order mark; save it as UTF-8"):
        list(csv_rows(tmp_path / "a.csv"))


def test_utf16_that_is_cut_or_broken_is_named(tmp_path):
    path, content = tmp_path / "a.jsonl", '{"a": 1}\n{"a": "é"}\n'.encode("utf-16")
    path.write_bytes(content[:-5])
    with pytest.raises(TruncatedFile, match=r"line 2 .*the 1 before it are complete"):
        list(json_lines(path))
    path.write_bytes('{"a": "'.encode("utf-16") + b"\x00\xd8" + '"}\n{"a": 1}\n'.encode("utf-16-le"))
    first, second = (record.value for record in json_lines(path))
    # A lone surrogate: the check of texts rejects the row.
    with pytest.raises(UnicodeEncodeError):
        first["a"].encode()
    assert second == {"a": 1}
    path.write_bytes('{"a": 1}\n'.encode("utf-32") + b"\xff\xff\xff\xff")
    with pytest.raises(InputError, match=r"a\.jsonl: is not valid UTF-32 after byte .*save it as UTF-8"):
        list(json_lines(path))


@pytest.mark.parametrize("kind", ["ZIP", "tar", "tar in gzip"])
def test_an_archive_is_named(tmp_path, kind):
    (tmp_path / "rows.jsonl").write_text(LINES[:200])
    path = tmp_path / "a.jsonl"
    if kind == "ZIP":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "rows.jsonl", "rows.jsonl")
    else:
        with tarfile.open(path, "w:gz" if "gzip" in kind else "w") as archive:
            archive.add(tmp_path / "rows.jsonl", "rows.jsonl")
    with pytest.raises(InputError, match=rf"a\.jsonl: is a {kind[:3]} archive; unpack it and name the folder"):
        list(json_lines(path))


def test_lines_end_at_line_feeds_only(tmp_path):
    """JSON allows U+2028 inside a text, and files of Windows end lines with two characters."""
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "a").write_bytes('{"a": "\u2028\x85"}\r\n{"a": 2}\r\n'.encode(encoding))
        with open_data(tmp_path / "a") as file:
            assert len(file.readlines()) == 2
        assert [(one.line, one.value) for one in json_lines(tmp_path / "a")] == [
            (1, {"a": "\u2028\x85"}),
            (2, {"a": 2}),
        ]
