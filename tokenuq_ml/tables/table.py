"""What a table is: its columns, sort key and partitions; and the key of tables with one row per token."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A table's columns (name -> type, meaning), its sort key and its partition columns.

    `optional` columns were added after stores had been written. Writers may leave them out, which writes null, and a
    column of nulls does not change a table's content hash.
    """

    description: str
    columns: dict[str, tuple[pa.DataType, str]]
    keys: tuple[str, ...]
    partitions: tuple[str, ...] = ("study",)
    optional: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with meanings as metadata."""
        return pa.schema(
            [pa.field(name, dtype, metadata={"description": text}) for name, (dtype, text) in self.columns.items()]
        )


TOKEN_COLUMNS = {
    "example_id": (pa.string(), "the example; starts with the name of its dataset"),
    "position": (pa.int32(), "index in input_ids of the token, which the tokens before it predict"),
}
TOKEN_KEY = tuple(TOKEN_COLUMNS)
"""The key of a response token, `example_id, position`, in every table with one row per token."""
