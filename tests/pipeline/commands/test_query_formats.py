"""Query results as aligned table, CSV, JSON, Parquet and Markdown, read back by other programs."""

import csv
import io
import json

import duckdb
import polars as pl
import pytest

from tokenuq_pipeline.commands.query import FORMATS
from tokenuq_pipeline.commands.query_formats import WRITERS, display_width

SQL = """
SELECT * FROM (VALUES
    (1, 0.1::FLOAT, 'a,"b"', [1, 2], true),
    (2, 'nan'::FLOAT, E'line\\n', NULL, NULL),
    (3, NULL, '', [], false))
AS t(number, value, text, list, flag)
"""


def written(form, sql=SQL):
    stream = io.BytesIO()
    with duckdb.connect() as connection:
        rows = WRITERS[form](connection.sql(sql), stream)
    return rows, stream.getvalue()


def test_the_command_offers_what_there_is():
    assert list(FORMATS) == list(WRITERS)


def test_csv():
    rows, text = written("csv")
    assert rows == 3
    assert list(csv.reader(io.StringIO(text.decode()))) == [
        ["number", "value", "text", "list", "flag"],
        ["1", "0.1", 'a,"b"', "[1, 2]", "true"],
        ["2", "nan", "line\n", "", ""],
        ["3", "", "", "[]", "false"],
    ]
    # Null and the empty string are told apart.
    assert text.endswith(b'3,,"",[],false\n')


def test_json():
    rows, text = written("json")
    assert rows == 3
    assert json.loads(text, parse_constant=pytest.fail) == [
        {"number": 1, "value": pytest.approx(0.1), "text": 'a,"b"', "list": [1, 2], "flag": True},
        {"number": 2, "value": None, "text": "line\n", "list": None, "flag": None},
        {"number": 3, "value": None, "text": "", "list": [], "flag": False},
    ]
    assert text.count(b"\n") == 5


def test_parquet_keeps_types():
    rows, data = written("parquet")
    frame = pl.read_parquet(data)
    assert rows == 3 and frame["value"].dtype == pl.Float32 and frame["list"].to_list() == [[1, 2], None, []]


def test_the_table_is_aligned_and_harmless():
    sql = r"""SELECT * FROM (VALUES ('日本', 1.23456789, 10), (E'\x1b[31m\n', 1e-9, NULL), (repeat('x', 100), -1, 7))
    AS t(token, loss, "count")"""
    rows, text = written("table", sql)
    lines = text.decode().splitlines()
    assert rows == 3 and lines[-1] == "(3 rows)"
    assert {display_width(line) for line in lines[1:-1]} == {display_width(lines[1])}
    assert lines[2].split() == ["日本", "1.23457", "10"] and lines[3].split() == [r"\x1b[31m\n", "1e-09", "null"]
    assert lines[4].startswith("x" * 79 + "…  ")


def test_markdown_shows_text_as_it_is():
    _, text = written("markdown", "SELECT '<b>|*x*' AS a_b, 0.25::FLOAT AS loss")
    assert text.decode() == "| a\\_b | loss |\n|---|---:|\n| \\<b\\>\\|\\*x\\* | 0.25 |\n"


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows(form):
    rows, text = written(form, "SELECT 1 AS a, 'x' AS b WHERE false")
    assert rows == 0
    if form == "parquet":
        assert pl.read_parquet(text).columns == ["a", "b"]
    else:
        assert (
            text.decode().split()
            == {
                "csv": ["a,b"],
                "json": ["[]"],
                "table": ["a", "b", "─", "─", "(0", "rows)"],
                "markdown": ["|", "a", "|", "b", "|", "|---:|---|"],
            }[form]
        )


def test_columns_of_one_name_are_told_apart():
    sql = "SELECT 1 AS a, 2 AS a"
    assert written("csv", sql)[1] == b"a,a_1\n1,2\n"
    assert json.loads(written("json", sql)[1]) == [{"a": 1, "a_1": 2}]
    assert pl.read_parquet(written("parquet", sql)[1]).row(0) == (1, 2)


@pytest.mark.parametrize("form", FORMATS)
def test_order_and_number_of_rows_hold_over_many_batches(form):
    rows, text = written(form, "SELECT range AS n FROM range(40000) ORDER BY n DESC")
    assert rows == 40000
    if form == "csv":
        assert [int(line) for line in text.split()[1:]] == list(range(39999, -1, -1))
    if form == "json":
        assert [row["n"] for row in json.loads(text)] == list(range(39999, -1, -1))
    if form == "parquet":
        assert pl.read_parquet(text)["n"].to_list() == list(range(39999, -1, -1))


def test_rows_are_written_before_the_last_is_computed():
    class Stop(Exception):
        pass

    class Few(io.BytesIO):
        def write(self, data):
            if self.tell() > 1_000_000:
                raise Stop
            return super().write(data)

    # Ten thousand million rows: whoever gathers them first does not come back.
    with duckdb.connect(config={"memory_limit": "200MB"}) as connection, pytest.raises(Stop):
        WRITERS["csv"](connection.sql("SELECT range AS n FROM range(10000000000)"), Few())
