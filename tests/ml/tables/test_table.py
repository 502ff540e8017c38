"""Types of columns: their names, and the Arrow types that these stand for."""

import pyarrow as pa
import pytest

from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.tables.table import arrow_type


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("string", pa.string()),
        ("bool", pa.bool_()),
        ("int8", pa.int8()),
        ("float32", pa.float32()),
        ("float64", pa.float64()),
        ("category", pa.dictionary(pa.int32(), pa.string())),
        ("list<list<int32>>", pa.list_(pa.list_(pa.int32()))),
        (
            "list<struct<role: string, content: string>>",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        ),
    ],
)
def test_a_name_is_one_arrow_type(name, dtype):
    assert arrow_type(name) == dtype


@pytest.mark.parametrize(
    "name", ["text", "list<text>", "struct<role: text>", "int32>", "map<int32>", "int32<int32>", ""]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError):
        arrow_type(name)


def test_every_column_of_every_table_has_its_meaning_in_the_schema():
    for table in TABLES.values():
        assert table.schema.names == list(table.columns)
        for field in table.schema:
            assert field.metadata[b"description"].decode() == table.columns[field.name][1]
