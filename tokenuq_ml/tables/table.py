"""What a table is: its columns, sort key and partitions; and the key of tables with one row per token.

Imports pyarrow only for a schema: names of tables and columns are needed by commands that read none.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A table's columns (name -> type, meaning), its sort key and its partition columns.

    Types are written as `arrow_type` reads them.

    `optional` columns were added after stores had been written. Writers may leave them out, which writes null, and a
    column of nulls does not change a table's content hash.
    """

    description: str
    columns: dict[str, tuple[str, str]]
    keys: tuple[str, ...]
    partitions: tuple[str, ...] = ("study",)
    optional: tuple[str, ...] = ()

    @property
    def schema(self) -> "pa.Schema":
        """The Arrow schema, with meanings as metadata."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field(name, arrow_type(dtype), metadata={"description": text})
                for name, (dtype, text) in self.columns.items()
            ]
        )


def arrow_type(dtype: str) -> "pa.DataType":
    """Return the Arrow type of a column.

    Args:
        dtype: a name of Arrow (`int32`), `category` (a dictionary of strings), `list<...>` of a type, or `struct<...>`
            of simple fields, as `role: string, content: string`.
    """
    import pyarrow as pa

    kind, inner = dtype.removesuffix(">").split("<", 1) if dtype.endswith(">") else (dtype, "")
    if kind == "list":
        return pa.list_(arrow_type(inner))
    if kind == "struct":
        return pa.struct([(name, arrow_type(of)) for name, of in (field.split(": ") for field in inner.split(", "))])
    return pa.dictionary(pa.int32(), pa.string()) if dtype == "category" else pa.type_for_alias(dtype)


TOKEN_COLUMNS = {
    "example_id": ("string", "the example; starts with the name of its dataset"),
    "position": ("int32", "index in input_ids of the token, which the tokens before it predict"),
}
TOKEN_KEY = tuple(TOKEN_COLUMNS)
"""The key of a response token, `example_id, position`, in every table with one row per token."""
