"""Content hashes of Arrow tables: a hash of the rows, independent of the layout of a file."""

import hashlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ContentHash:
    """Sixteen hex digits over names, types and values in row order, computed piece by piece.

    Independent of how rows are cut into pieces, and of encoding, compression and file metadata: tables with equal rows
    have equal hashes. An `optional` column counts only if it holds a value: tables without it have the hash of tables
    where it is null.
    """

    def __init__(self, schema: pa.Schema, optional: Collection[str] = ()):
        self._rows = 0
        self._null = set(optional)
        self._columns = {field.name: _column_hash(field.type) for field in schema}

    def update(self, data: pa.Table) -> None:
        """Add rows that have the columns of the schema."""
        self._rows += data.num_rows
        for name, column in self._columns.items():
            for chunk in data.column(name).chunks:
                column.update(chunk)
                if chunk.null_count < len(chunk):
                    self._null.discard(name)

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        counted = ((name, column) for name, column in self._columns.items() if name not in self._null)
        parts = (f"|{name}|{column.digest()}" for name, column in counted)
        return hashlib.sha256((str(self._rows) + "".join(parts)).encode()).hexdigest()[:16]


def content_hash(data: pa.Table) -> str:
    """Return the content hash of a table in memory."""
    digest = ContentHash(data.schema)
    digest.update(data)
    return digest.hexdigest()


class _ColumnHash:
    """The hash of a column: which values are null, and lengths, values or children, by the kind of its type."""

    def __init__(self, kind: str, children: dict[str, "_ColumnHash"] | None = None):
        self.kind, self.children = kind, children or {}
        self._parts = {name: hashlib.sha256() for name in ("valid", "lengths", "values")}

    def update(self, array: pa.Array) -> None:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        self._parts["valid"].update(valid.astype("u1").tobytes())
        if self.kind == "list":
            self._add_lengths(array.value_lengths())
            self.children["item"].update(array.flatten())
        elif self.kind == "struct":
            for name, child in self.children.items():
                child.update(pc.struct_field(array, name))
        elif self.kind == "string":
            array = array.cast(pa.large_string())
            self._add_lengths(pc.binary_length(array))
            # Without nulls: the bytes that lie under them in memory are arbitrary.
            dropped = array.drop_null()
            _, offsets, values = dropped.buffers()
            ends = np.frombuffer(offsets, "<i8")[dropped.offset : dropped.offset + len(dropped) + 1]
            if len(ends) and values is not None:
                self._parts["values"].update(memoryview(values)[ends[0] : ends[-1]])
        else:
            numbers = array.fill_null(False if self.kind == "bool" else 0).to_numpy(zero_copy_only=False)
            self._parts["values"].update(np.ascontiguousarray(numbers).tobytes())

    def _add_lengths(self, lengths: pa.Array) -> None:
        numbers = lengths.fill_null(0).to_numpy(zero_copy_only=False)
        self._parts["lengths"].update(numbers.astype("<i8").tobytes())

    def digest(self) -> str:
        parts = [self.kind, *(part.hexdigest() for part in self._parts.values())]
        # For a nested type only its kind and its fields: names of list items differ between writers.
        parts += [f"{name}:{child.digest()}" for name, child in self.children.items()]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _column_hash(dtype: pa.DataType) -> _ColumnHash:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return _ColumnHash("list", {"item": _column_hash(dtype.value_type)})
    if pa.types.is_struct(dtype):
        return _ColumnHash("struct", {field.name: _column_hash(field.type) for field in dtype})
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return _ColumnHash("string")
    return _ColumnHash(str(dtype))
