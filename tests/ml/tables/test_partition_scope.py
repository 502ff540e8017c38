"""What a query is known to need: the rows of other partitions change nothing of its result."""

from itertools import product

import duckdb
import pytest

from tokenuq_ml.tables.partition_scope import partition_scope
from tokenuq_ml.tables.schemas import JOINED_READS

TABLES = ("token_losses", "token_uncertainty", "selections", "evaluations")
NARROWED = [
    "FROM token_losses WHERE study = 'a'",
    "SELECT count(*) FROM token_losses AS t WHERE t.study IN ('a', 'b') AND x > 1",
    "SELECT * FROM selections WHERE 'b' = study AND ablation = 'm'",
    "SELECT * FROM token_losses WHERE study = 'a' AND study = 'b'",
    "SELECT sum(l.x) FROM token_losses l JOIN selections s USING (study, id) WHERE study = 'a' AND s.ablation = 'n'",
    "SELECT l.x, s.x FROM token_losses l LEFT JOIN selections s ON l.id = s.id WHERE s.study = 'a'",
    "SELECT l.x, s.x FROM token_losses l FULL JOIN selections s USING (id) WHERE s.study = 'a' AND l.study = 'b'",
    "SELECT * FROM token_losses NATURAL JOIN token_uncertainty WHERE study = 'b'",
    "SELECT study, x, row_number() OVER (ORDER BY x, id) FROM token_losses WHERE study = 'b'",
    "WITH one AS (SELECT * FROM token_losses WHERE study = 'a') SELECT count(*) FROM one",
    "SELECT * FROM token_losses WHERE study = 'a' UNION ALL SELECT * FROM token_losses WHERE study = 'b'",
    "SELECT * FROM token_losses l ANTI JOIN selections s ON l.id = s.id WHERE study = 'a'",
    "SELECT * FROM token_losses l SEMI JOIN selections s ON l.id = s.id WHERE l.study = 'a'",
    "SELECT (SELECT max(x) FROM selections WHERE study = 'b') FROM token_losses WHERE study = 'a'",
    "SELECT x FROM token_losses l WHERE study = 'a' AND EXISTS (FROM selections s WHERE l.id = s.id AND s.study = 'c')",
]
NOT_NARROWED = [
    "FROM token_losses",
    "FROM token_losses WHERE study = 'a' OR x = 1",
    "FROM token_losses WHERE NOT study = 'a'",
    "FROM token_losses WHERE study = 'A' COLLATE NOCASE",
    "FROM token_losses WHERE study = concat('a', '')",
    "FROM token_losses WHERE x = 1",
    "FROM (FROM token_losses) WHERE study = 'a'",
    "SELECT l.x FROM token_losses l POSITIONAL JOIN token_uncertainty u WHERE l.study = 'b'",
    "SELECT l.x, u.x FROM token_losses l ASOF JOIN token_uncertainty u ON l.x >= u.x WHERE u.study = 'b'",
    "SELECT count(*) FROM token_losses AS t(study, y) WHERE study = 'a'",
    "SELECT count(*) FROM token_losses USING SAMPLE reservoir(3 ROWS) REPEATABLE (1) WHERE study = 'a'",
    "DESCRIBE token_losses",
    "SELECT study FROM token_losses GROUP BY study HAVING study = 'a'",
]


@pytest.fixture(scope="module")
def connection():
    """Small tables of three studies."""
    with duckdb.connect() as connection:
        for number, table in enumerate(TABLES):
            rows = [
                (study, ablation, one, (7 * one + 3 * number + len(study + ablation)) % 5)
                for study, ablation, one in product("abc", "mn", range(6))
                if (one + number + ord(study)) % 3
            ]
            connection.execute(f"CREATE TABLE all_{table} (study TEXT, ablation TEXT, id INT, x INT)")
            connection.executemany(f"INSERT INTO all_{table} VALUES (?, ?, ?, ?)", rows)
            columns = "*" if table in ("selections", "evaluations") else "* EXCLUDE ablation"
            connection.execute(f"ALTER TABLE all_{table} RENAME TO raw_{table}")
            connection.execute(f"CREATE TABLE all_{table} AS SELECT DISTINCT {columns} FROM raw_{table} ORDER BY ALL")
        yield connection


def answer(connection, query, scope):
    for table in TABLES:
        parts = [
            " AND ".join(f"{name} IN (SELECT unnest({values!r}::TEXT[]))" for name, values in part.items())
            for part in scope.get(table, [])
        ]
        where = f"WHERE {' OR '.join(f'({part})' for part in parts)}" if parts else ""
        connection.execute(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM all_{table} {where}")
    return sorted(map(str, connection.execute(query).fetchall()))


@pytest.mark.parametrize("query", NARROWED)
def test_the_partitions_that_are_needed_give_the_same_rows(connection, query):
    scope = partition_scope(query)
    assert scope and answer(connection, query, scope) == answer(connection, query, {})


@pytest.mark.parametrize("query", [*NOT_NARROWED, "no query", "SELECT '\ud800' FROM token_losses WHERE study = 'a'"])
def test_what_proves_nothing_needs_all_partitions(query):
    assert partition_scope(query) == {}


def test_the_joined_view_needs_the_studies_of_its_tables():
    scope = partition_scope("SELECT count(*) FROM tokens WHERE study = 'a' AND split = 'train'")
    assert scope == {name: [{"study": ["a"]}] for name in JOINED_READS}


def test_a_table_that_is_read_twice_needs_both_and_all_if_one_of_them_does():
    query = (
        "SELECT (SELECT max(x) FROM selections WHERE study = 'b') FROM selections WHERE study = 'a' AND ablation = 'm'"
    )
    assert partition_scope(query) == {"selections": [{"study": ["a"], "ablation": ["m"]}, {"study": ["b"]}]}
    assert partition_scope(f"{query} UNION ALL SELECT x FROM selections") == {}
