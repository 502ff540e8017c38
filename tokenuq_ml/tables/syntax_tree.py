"""What a query may consist of: DuckDB's own syntax tree of it, each node of a kind that is allowed.

`json_serialize_sql` gives the tree that DuckDB's parser makes. Kinds are allowed, not forbidden, at every depth: a kind
that a later version of DuckDB adds is refused until it is listed here. Refused are therefore statements in a WITH
(`COPY_QUERY_NODE`), parameters, and whatever DuckDB does not serialise: everything but SELECT, and a PIVOT whose values
are not listed, which DuckDB runs as several statements.

Functions: those that DuckDB's catalogue calls consistent, which compute from their arguments alone; macros whose bodies
pass the same walk; a few that depend on the clock or on chance; and table functions that make rows from their
arguments. Not: functions that open files, read settings, run SQL from a text or wait.

sqlglot was looked at: its parser accepts another language than DuckDB's, so what it checks is not what runs.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import duckdb

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.schemas import JOINED, TABLES

_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_SOURCES = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST", "PIVOT", "SHOW_REF", "CTE"}
_MODIFIERS = {"ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER"}
_ORDERS = {"ORDER_DEFAULT", "ASCENDING", "DESCENDING"}
_TYPES = {
    *("ALIAS_TYPE_INFO", "GENERIC_TYPE_INFO", "DECIMAL_TYPE_INFO", "STRING_TYPE_INFO", "LIST_TYPE_INFO"),
    *("STRUCT_TYPE_INFO", "ARRAY_TYPE_INFO", "UNBOUND_TYPE_INFO", "INTEGER_LITERAL_TYPE_INFO"),
}
_KINDS = _QUERIES | _SOURCES | _MODIFIERS | _ORDERS | _TYPES
_EXPRESSIONS = {
    *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
    *("LAMBDA", "LAMBDA_REF", "OPERATOR", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE", "WINDOW"),
}
_SHOWN = {"", '"tables"', "__show_tables_expanded"}

_ROW_SOURCES = {"range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree"}
_BY_CLOCK_OR_CHANCE = {
    *("current_date", "current_localtime", "current_localtimestamp", "get_current_time", "get_current_timestamp"),
    *("now", "today", "transaction_timestamp", "random", "setseed", "uuid", "gen_random_uuid", "uuidv4", "uuidv7"),
    "error",
}
# They plan or run SQL that is given as text, or are DuckDB's own and trust their arguments.
_NOT_FOR_QUERIES = {"json_serialize_plan", "json_deserialize_sql", "index_key", "variant_bytes_to_variant"}
# From version 2.0.1 on, DuckDB calls functions of times with a zone (`+`, `year`) consistent within a query only: they
# read the zone of the session, which no query can set.
_STABILITY = """CASE WHEN stability = 'CONSISTENT_WITHIN_QUERY'
AND regexp_matches(parameter_types::VARCHAR || return_type, 'TIME ZONE|TIMESTAMPTZ')
THEN 'CONSISTENT' ELSE stability END"""
_OWN_SCHEMAS: tuple[list[str], ...] = ([], ["main"], ["memory"], ["memory", "main"])


@dataclass
class Names:
    """What a query names, in lower case: tables and views, the queries of its WITH clauses, functions."""

    tables: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Function:
    """The stabilities of a function's overloads, and its bodies if it is a macro; both empty if it gives tables."""

    stabilities: frozenset[str]
    bodies: tuple[str, ...]


class Catalog:
    """The tables and functions that a connection offers."""

    # DuckDB's own functions and tables, which are those of every connection: listing them takes some 10 ms.
    _built_in: ClassVar[dict[str, _Function]] = {}
    _system_tables: ClassVar[set[str]] = set()

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self._connection = connection

    def tables(self) -> list[str]:
        """Return the views of the store, and tables and views that the program has created."""
        rows = self._rows(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal UNION ALL "
            "SELECT table_name FROM duckdb_tables() WHERE NOT internal"
        )
        return [name for (name,) in rows]

    def is_registered(self, name: str) -> bool:
        """Return whether the connection itself has a table of that name: a frame that the program registered."""
        # Asked without a query, which would end a result that is being read. A name with a dot could be a file's.
        if not re.fullmatch(r"[\w ]+", name) or name in self.system_tables():
            return False
        try:
            self._connection.view(name)
        except duckdb.Error:
            return False
        return True

    def system_tables(self) -> set[str]:
        """Return DuckDB's own tables that a name without a schema finds."""
        if not self._system_tables:
            rows = self._rows(
                "SELECT view_name FROM duckdb_views() WHERE internal AND schema_name <> 'information_schema'"
            )
            self._system_tables.update(name for (name,) in rows)
        return self._system_tables

    def functions(self, names: set[str]) -> dict[str, _Function]:
        """Return name -> what DuckDB's catalogue says of a function; without the names that it lacks."""
        own: dict[str, _Function] = {}
        if unknown := names - self._built_in.keys():
            rows = self._rows(
                "SELECT lower(function_name), "
                f"list(DISTINCT {_STABILITY}) FILTER (function_type IN ('scalar', 'aggregate', 'window')), "
                "list(macro_definition) FILTER (function_type = 'macro'), bool_and(internal) FROM duckdb_functions() "
                "WHERE lower(function_name) IN (SELECT unnest(?)) GROUP BY ALL",
                [sorted(unknown)],
            )
            for name, stabilities, bodies, internal in rows:
                function = _Function(frozenset(stabilities or ()), tuple(bodies or ()))
                (self._built_in if internal else own)[name] = function
        return {name: facts for name in names if (facts := self._built_in.get(name) or own.get(name))}

    def trees(self, sql: str) -> Any:
        """Return DuckDB's syntax trees of `sql`, or its reason to have none."""
        return json.loads(self._rows("SELECT json_serialize_sql(?)", [sql])[0][0])

    def _rows(self, sql: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        # On a connection of its own: a result of the caller's that is being read stays valid.
        with self._connection.cursor() as cursor:
            return cursor.execute(sql, values or []).fetchall()


def require_allowed(catalog: Catalog, sql: str) -> Names:
    """Return what one SELECT names.

    Raises:
        InputError: it is not one SELECT, or has a node, a function or a table that is not allowed.
    """
    tree = _tree(catalog, sql)
    names = _require_kinds(tree["node"])
    _require_functions(catalog, names)
    _require_tables(catalog, names)
    return names


def _tree(catalog: Catalog, sql: str) -> dict[str, Any]:
    try:
        found = catalog.trees(sql)
    except RecursionError:
        raise InputError("query: is nested too deeply (more than some 300 levels)") from None
    if found["error"]:
        if "PIVOT" in sql.upper():
            raise InputError(
                "query: a PIVOT must list its values, as in PIVOT t ON split IN ('train', 'test') USING avg(loss): "
                "without them, DuckDB runs several statements"
            )
        raise InputError(f"query: only SELECT is allowed; DuckDB: {found['error_message']}")
    trees = found["statements"]
    if len(trees) != 1:
        raise InputError(f"query: give exactly one SELECT; this has {len(trees) or 'no'} statements")
    if trees[0].get("named_param_map"):
        raise InputError("query: parameters (?, $1) have no values here; write the values")
    tree: dict[str, Any] = trees[0]
    return tree


def _require_kinds(tree: Any) -> Names:
    """Return what a tree names.

    Raises:
        InputError: a node is of a kind that is not allowed.
    """
    names = Names()
    for node in _objects(tree):
        if "info_type" in node:
            raise _refusal(f"{_words(node['info_type'])} is not")
        kind = node.get("type")
        if "class" in node:
            if node["class"] not in _EXPRESSIONS:
                raise _refusal(f"an expression of the kind {_words(node['class'])} is not")
            # Of windows too: row_number() OVER () is a function.
            if name := node.get("function_name"):
                names.functions.add(name.lower())
        elif isinstance(kind, str):
            if kind not in _KINDS:
                raise _refusal(f"{_words(kind)} is not")
            _require_source(node, kind, names)
        names.own.update(name.lower() for name in _cte_names(node))
    return names


def _require_source(node: dict[str, Any], kind: str, names: Names) -> None:
    if kind == "TABLE_FUNCTION":
        name = node["function"].get("function_name", "").lower()
        if name not in _ROW_SOURCES:
            raise _refusal(f"the table function {name} is not; of these, {', '.join(sorted(_ROW_SOURCES))} are")
    elif kind == "SHOW_REF" and node["query"] is None and node["table_name"] not in _SHOWN:
        raise _refusal(f"SHOW {node['table_name']} is not")
    elif kind == "BASE_TABLE":
        *schema, name = node["qualified_name"]["path"]
        if [part.lower() for part in schema] not in _OWN_SCHEMAS:
            raise _refusal(f"the schema of {'.'.join([*schema, name])} is not")
        names.tables.add(name.lower())


def _require_functions(catalog: Catalog, names: Names) -> None:
    """Raise if a function, or one in the body of a macro, is not allowed."""
    done = _ROW_SOURCES | _BY_CLOCK_OR_CHANCE
    while waiting := names.functions - done:
        for name, function in catalog.functions(waiting).items():
            if name in _NOT_FOR_QUERIES or name.startswith("__internal"):
                raise _refusal(f"the function {name} is not")
            if not function.stabilities and not function.bodies:
                raise _refusal(f"the function {name}, which gives a table, is not")
            if function.stabilities - {"CONSISTENT"}:
                raise _refusal(f"the function {name} is not: it reads or changes more than its arguments")
            for body in function.bodies:
                inside = _require_kinds(_tree(catalog, f"SELECT {body}")["node"])
                names.functions |= inside.functions
                names.tables |= inside.tables
        # A name that the catalogue lacks: DuckDB says so, and which one is the nearest.
        done = done | waiting


def _require_tables(catalog: Catalog, names: Names) -> None:
    if names.own and (hidden := names.own & catalog.system_tables()):
        raise _refusal(f"a WITH named {min(hidden)} is not, because DuckDB has a table of that name")
    unknown = names.tables - TABLES.keys() - {JOINED} - names.own
    known = {name.lower(): name for name in catalog.tables()} if unknown else {}
    for name in sorted(unknown - known.keys()):
        if catalog.is_registered(name):
            continue
        near = difflib.get_close_matches(name, known, 3)
        raise InputError(
            f"query: table {name} does not exist. "
            + (f"Did you mean {' or '.join(known[one] for one in near)}? " if near else "")
            + "A query can read the tables of the store (`tokenuq query --schema` lists them), and no other file or "
            "address."
        )


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value, at any depth."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _cte_names(node: dict[str, Any]) -> list[str]:
    names = [entry["key"] for entry in (node.get("cte_map") or {}).get("map", [])]
    # A recursive query names itself.
    return names + ([node["cte_name"]] if node.get("cte_name") else [])


def _words(kind: str) -> str:
    return kind.removesuffix("_QUERY_NODE").removesuffix("_NODE").removesuffix("_INFO").replace("_", " ")


def _refusal(what: str) -> InputError:
    return InputError(
        f"query: only SELECT is allowed, because a query must not change the store, and it reads its tables alone, no "
        f"other file or address: {what} allowed"
    )
