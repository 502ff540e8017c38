"""Parquet and Arrow record by record give what polars gives; cut files are reported."""

import io
import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.records import read
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.data.sources.table_records import arrow_rows, parquet_rows
from tokenuq_ml.errors import InputError

ROWS = [{"q": f'Q{i}, "é"\nand {i}', "a": f"A{i}", "n": [{"x": i}, {"x": None}]} for i in range(600)]
FLAT = [{name: row[name] for name in ("q", "a")} for row in ROWS[:5]]


def arrow(rows, new) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def test_parquet_rows_are_those_of_the_table(tmp_path):
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet", row_group_size=100)
    assert read(parquet_rows(tmp_path / "a.parquet")) == (ROWS, None)


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_rows_are_those_of_the_table(tmp_path, new):
    (tmp_path / "a.arrow").write_bytes(arrow(ROWS, new))
    assert read(arrow_rows(tmp_path / "a.arrow")) == (ROWS, None)


def test_arrow_files_of_polars_and_datasets_are_read(tmp_path):
    from datasets import Dataset

    pl.DataFrame(ROWS).write_ipc(tmp_path / "a.arrow")
    assert read(arrow_rows(tmp_path / "a.arrow")) == (ROWS, None)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert read(arrow_rows(file)) == (ROWS, None)


def test_cut_parquet_is_an_error_at_any_byte(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(FLAT), path)
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"a\.parquet: is not complete Parquet after row 0 .*copy the file again"):
            read(parquet_rows(path))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_cut_arrow_keeps_its_complete_batches(tmp_path, new):
    path, content = tmp_path / "a.arrow", arrow(FLAT, new)
    counts = []
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        values, end = read(arrow_rows(path))
        assert end is not None and end.complete == len(values) and values == FLAT[: len(values)], cut
        counts.append(len(values))
    assert counts == sorted(counts) and set(counts) == {0, 2, 4, 5}


CONTENTS = {
    "file": (lambda: arrow(ROWS[:20], pa.ipc.new_file), arrow_rows),
    "stream": (lambda: arrow(ROWS[:20], pa.ipc.new_stream), arrow_rows),
    "parquet": (lambda: parquet(ROWS[:20]), parquet_rows),
}


def parquet(rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="none", row_group_size=5)
    return sink.getvalue()


@pytest.mark.parametrize("kind", CONTENTS)
def test_random_damage_never_ends_in_a_traceback(tmp_path, kind):
    make, read_rows = CONTENTS[kind]
    content, draw, path, refused, broken = make(), random.Random(kind), tmp_path / "a", 0, 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(damaged))
            if draw.random() < 0.7:
                damaged[at] = draw.randrange(256)
            else:
                del damaged[at : at + draw.randint(1, 9)]
        path.write_bytes(damaged)
        try:
            values, _ = read(read_rows(path))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            broken += any(isinstance(value, BrokenRow) for value in values)
    assert broken > 0 and refused > 0


@pytest.mark.parametrize("read_rows", [parquet_rows, arrow_rows])
def test_broken_bytes_in_a_text_cost_one_row(tmp_path, read_rows):
    texts = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])), pa.py_buffer(b"a\xffc")],
    )
    table = pa.table({"q": texts})
    if read_rows is parquet_rows:
        pq.write_table(table, tmp_path / "a")
    else:
        (tmp_path / "a").write_bytes(arrow_table(table))
    values, end = read(read_rows(tmp_path / "a"))
    assert end is None and (values[0], values[2]) == ({"q": "a"}, {"q": "c"})
    assert isinstance(values[1], BrokenRow) and values[1].reason == "invalid Unicode"


def arrow_table(table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
