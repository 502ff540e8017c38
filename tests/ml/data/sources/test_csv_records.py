"""CSV and TSV record by record give what polars gives; cut files and open quotations are reported."""

import csv
import random

import polars as pl
import pytest

from tests.support.records import read
from tokenuq_ml.data.sources.csv_records import csv_rows
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.errors import InputError

FLAT = [{"q": f'Q{i}, "é"\nand {i}', "a": f"A{i}"} for i in range(5)]


def test_csv_rows_are_those_of_the_table_with_the_lines_they_begin_on(tmp_path):
    path = tmp_path / "a.csv"
    pl.DataFrame(FLAT).write_csv(path, include_bom=True)
    records = list(csv_rows(path))
    assert [record.value for record in records] == FLAT
    # Each row holds a line break.
    assert [record.line for record in records] == [2, 4, 6, 8, 10]


def test_broken_csv_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'q,a\none\n1,2,3\n\nx,"y"z\nok,\xff\n5,6\n7')
    values, end = read(csv_rows(path))
    assert [str(value) for value in values[:3]] == [
        "has 1 cells, the first row names 2 columns",
        "has 3 cells, the first row names 2 columns",
        "not CSV (',' expected after '\"')",
    ]
    assert values[3:] == [{"q": "ok", "a": "\udcff"}, {"q": "5", "a": "6"}]
    assert end.complete == 5 and "line 8" in str(end)
    path.write_text("q,a\n1,2\n7\n")
    assert read(csv_rows(path))[1] is None, "the last line has an end: it is broken, not cut"


def test_csv_cut_at_any_byte_reports_its_complete_rows(tmp_path):
    path = tmp_path / "a.csv"
    content = b'q,a\nQ0,A0\n"Q1, ""x""\ny","A1"\nQ2,A2\n'
    rows = [{"q": "Q0", "a": "A0"}, {"q": 'Q1, "x"\ny', "a": "A1"}, {"q": "Q2", "a": "A2"}]
    for cut in range(4, len(content)):
        path.write_bytes(content[:cut])
        values, end = read(csv_rows(path))
        whole = values if end else values[:-1]
        assert whole == rows[: len(whole)] and (end is None or end.complete == len(whole)), cut
        # What no reader can tell: a last cell that is cut, but all cells are there.
        assert end is not None or cut == 4 or content[:cut].count(b",") in (2, 4, 5), cut


def test_csv_long_cells_are_read_and_the_global_limit_is_restored(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"q\n{'x' * 300_000}\n")
    (record,) = csv_rows(tmp_path / "a.csv")
    assert len(record.value["q"]) == 300_000 and csv.field_size_limit() == before


@pytest.mark.parametrize("text", ["", "q,q\n1,2\n"])
def test_csv_must_name_its_columns(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"a\.csv: the first row must name each column once"):
        list(csv_rows(tmp_path / "a.csv"))


def test_random_damage_never_ends_in_a_traceback(tmp_path):
    content, draw, path, broken = pl.DataFrame(FLAT * 4).write_csv().encode(), random.Random("csv"), tmp_path / "a", 0
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
            values, _ = read(csv_rows(path))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            broken += any(isinstance(value, BrokenRow) for value in values)
    assert broken > 0


# quotations that are not closed


def lines(count: int, **changed: str) -> str:
    rows = [changed.get(f"row_{i}", f"Q{i},A{i}") for i in range(count)]
    return "q,a\n" + "".join(f"{row}\n" for row in rows)


@pytest.mark.parametrize(
    ("changed", "closes"),
    [
        ({"row_2": '"Q2,A2'}, 201),
        ({"row_2": '"Q2,A2', "row_9": 'Q9,"a, b"'}, 11),
        ({"row_2": 'Q2,"A2', "row_150": 'Q150,"a, b"'}, 152),
        # Two stray marks: what is between them has the cells of a row.
        ({"row_2": '"Q2,A2', "row_150": 'Q150",A150'}, 152),
        ({"row_2": '"Q2,A2', "row_150": 'he said "hi"'}, 152),
    ],
)
def test_a_quotation_that_swallows_rows_fails_with_its_line(tmp_path, changed, closes):
    (tmp_path / "a.csv").write_text(lines(200, **changed))
    opening = changed["row_2"][changed["row_2"].index('"') :]
    with pytest.raises(InputError) as caught:
        list(csv_rows(tmp_path / "a.csv"))
    said = f"a.csv: line 4: the quotation that opens at {opening!r} is not closed before line {closes}, so that"
    assert said in str(caught.value) and f"{closes - 3} lines would be one row" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "One, two, three.\n" * 300,
        "def f(a, b):\n    return a, b\n\n" * 100,
        "".join(f"{i}, x\n" for i in range(20)),
        "word\n" * 500,
    ],
    ids=["prose", "code", "short table", "words"],
)
@pytest.mark.parametrize("first", [True, False])
def test_texts_of_many_lines_are_read(tmp_path, text, first):
    row = {"q": text, "a": "A"} if first else {"q": "Q", "a": text}
    rows = [*({"q": f"Q{i}", "a": f"A{i}"} for i in range(5)), row, {"q": "end", "a": "end"}]
    pl.DataFrame(rows).write_csv(tmp_path / "a.csv")
    assert read(csv_rows(tmp_path / "a.csv")) == (rows, None)
    pl.DataFrame(rows).select("a").write_csv(tmp_path / "a.csv")
    assert read(csv_rows(tmp_path / "a.csv"))[0] == [{"a": one["a"]} for one in rows]


def test_a_row_that_swallows_few_lines_says_which(tmp_path):
    (tmp_path / "a.csv").write_text('q,a\n"Q0,A0\nQ1,"A1"\nQ2,A2\n')
    values, end = read(csv_rows(tmp_path / "a.csv"))
    assert str(values[0]) == "not CSV (',' expected after '\"'; the row holds lines 2 to 3)"
    assert values[1:] == [{"q": "Q2", "a": "A2"}] and end is None


@pytest.mark.parametrize(("text", "named"), [("q;a\n1;2\n", "semicolons"), ("q\ta\n1\t2\n", "tabs"), ("q|a\n", "bars")])
def test_another_delimiter_is_named(tmp_path, text, named):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=rf"a\.csv: its first row names a single column, .* separated by {named}"):
        list(csv_rows(tmp_path / "a.csv"))


def test_tabs_separate_the_columns_of_tsv(tmp_path):
    pl.DataFrame(FLAT).write_csv(tmp_path / "a.tsv", separator="\t")
    assert read(csv_rows(tmp_path / "a.tsv", "\t")) == (FLAT, None)
    with pytest.raises(InputError, match=r"a\.tsv: its first row names a single column, .* separated by commas"):
        pl.DataFrame(FLAT).write_csv(tmp_path / "a.tsv")
        list(csv_rows(tmp_path / "a.tsv", "\t"))
