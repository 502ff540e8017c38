"""Which partitions of its tables a query needs, as its syntax tree proves: the others need not be downloaded.

Taken are comparisons of a partition column with texts (`study = 'x'`, `ablation IN ('x', 'y')`) that a WHERE clause
joins by AND, for the tables of the same FROM clause. Everything else needs all partitions. DuckDB's optimiser skips
more files, but only while the query runs, where nothing can be downloaded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb

from tokenuq_ml.tables.partitions import partition_of
from tokenuq_ml.tables.schemas import JOINED, JOINED_ON, JOINED_READS, TABLES

Scope = Mapping[str, Sequence[Mapping[str, Sequence[str]]]]
"""Table -> for each time that a query reads it, partition column -> values. Of other tables, all partitions."""
ALL: Scope = MappingProxyType({})
"""All partitions of all tables."""

_ORDERLY = {"REGULAR", "CROSS", "NATURAL"}
"""Joins that a filter on one of their tables can precede; not by position, and not to the nearest."""
_SEEN = {"INNER", "LEFT", "RIGHT", "OUTER", "FULL"}


def partition_scope(sql: str) -> dict[str, list[dict[str, list[str]]]]:
    """Return which partitions of the store's tables a query needs."""
    with duckdb.connect() as connection:
        try:
            found = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0]
        except (duckdb.Error, UnicodeError):
            return {}
    read: dict[str, list[dict[str, list[str]]]] = {}
    for table, wanted in _reads(json.loads(found)):
        read.setdefault(table, []).append(wanted)
    return {table: all_wanted for table, all_wanted in read.items() if all(all_wanted)}


def in_scope(file: Path, table: str, scope: Scope) -> bool:
    """Return whether a file of a table is of a partition that is needed."""
    if table not in scope:
        return True
    own = partition_of(file, table)
    return any(all(own[column] in values for column, values in wanted.items()) for wanted in scope[table])


def _reads(node: Any) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield each table that a tree reads, with the values of partition columns that are needed; none for all."""
    if isinstance(node, list):
        for part in node:
            yield from _reads(part)
    elif isinstance(node, dict):
        below = dict(node)
        if node.get("type") == "SELECT_NODE" and isinstance(node.get("from_table"), dict):
            source = below.pop("from_table")
            filters = [] if node.get("sample") else list(_filters(node.get("where_clause")))
            yield from _sources(source, filters if _is_orderly(source) else [])
        elif node.get("type") == "BASE_TABLE":
            yield from ((table, {}) for table in _tables_of(node))
        for part in below.values():
            yield from _reads(part)


def _sources(
    node: dict[str, Any], filters: list[tuple[list[str], list[str]]]
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the tables of a FROM clause, with what its WHERE clause asks for."""
    if node.get("type") == "JOIN":
        yield from _sources(node["left"], filters)
        # The right side of a semi or anti join is not seen by the WHERE clause.
        yield from _sources(node["right"], filters if node.get("join_type") in _SEEN else [])
        yield from _reads({key: part for key, part in node.items() if key not in ("left", "right")})
    elif node.get("type") == "BASE_TABLE" and not (node.get("sample") or node.get("column_name_alias")):
        names = {str(node.get("alias") or node.get("table_name")).lower()}
        for table in _tables_of(node):
            columns = set(TABLES[table].partitions)
            if str(node.get("table_name")).lower() == JOINED:
                columns &= set(JOINED_ON)
            wanted: dict[str, list[str]] = {}
            for (*qualifier, column), values in filters:
                if column in columns and (not qualifier or set(qualifier) == names):
                    before = wanted.get(column)
                    wanted[column] = [value for value in values if before is None or value in before]
            yield table, wanted
    else:
        yield from _reads(node)


def _tables_of(node: dict[str, Any]) -> tuple[str, ...]:
    name = str(node.get("table_name")).lower()
    return tuple(JOINED_READS) if name == JOINED else (name,) if name in TABLES else ()


def _is_orderly(source: dict[str, Any]) -> bool:
    if source.get("type") != "JOIN":
        return True
    return source.get("ref_type") in _ORDERLY and all(_is_orderly(source[side]) for side in ("left", "right"))


def _filters(clause: Any) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the column, with its qualifiers, and the texts of each comparison that has to hold."""
    if not isinstance(clause, dict):
        return
    if clause.get("type") == "CONJUNCTION_AND":
        for child in clause["children"]:
            yield from _filters(child)
        return
    if clause.get("type") == "COMPARE_EQUAL":
        sides = [clause["left"], clause["right"]]
        # Either may be the column.
        sides.sort(key=lambda side: side.get("type") != "COLUMN_REF")
    elif clause.get("type") == "COMPARE_IN":
        sides = clause["children"]
    else:
        return
    column, *constants = sides
    texts = [_text(constant) for constant in constants]
    if column.get("type") == "COLUMN_REF" and all(text is not None for text in texts):
        yield [name.lower() for name in column["column_names"]], [text for text in texts if text is not None]


def _text(node: dict[str, Any]) -> str | None:
    """Return the text that a node is; None if it is none."""
    literal = node.get("literal") if node.get("type") == "VALUE_CONSTANT" else None
    return literal.get("text") if isinstance(literal, dict) and literal.get("kind") == "STRING" else None
