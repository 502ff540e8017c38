"""What a query may consist of: attacks are refused by `select`, and come to nothing without it; queries are allowed."""

import contextlib
import hashlib

import duckdb
import polars as pl
import pytest

from tests.support import attacks
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.sql import connect, query_errors, select
from tokenuq_ml.tables.syntax_tree import _STABILITY


@pytest.fixture(scope="module")
def walled(tmp_path_factory):
    """A connection, and the words for its places; around the store are a secret and a link to it."""
    outside = tmp_path_factory.mktemp("outside")
    home = outside / "store"
    log = {"step": [1, 2], "epoch": 1.0, "category": "word", "n_tokens": 1, "n_selected": 0, "mean_loss": 1.0}
    folder = home / "curriculum/study=a/ablation=b"
    write_table(pl.DataFrame(log), "curriculum", folder, spec_hash="s", code_version="c")
    (outside / "secret.csv").write_text("a,b\n1,2\n")
    (home / "link.csv").symlink_to(outside / "secret.csv")
    (home / "notes.json").write_text("{}")
    table = folder / "part-0.parquet"
    words = {"home": home, "outside": outside, "table": table, "address": f"store://{table.relative_to(home)}"}
    with connect(home) as connection:
        yield connection, words


def contents(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def filled(sql, words):
    for name, word in words.items():
        sql = sql.replace("{" + name + "}", str(word))
    return sql


def refusal(sql, walled):
    connection, words = walled
    frame = pl.DataFrame({"a": [1]})  # noqa: F841 - a query must not find it by its name
    before = contents(words["outside"])
    with pytest.raises(InputError) as refused, query_errors():
        select(connection, filled(sql, words)).fetchall()
    assert contents(words["outside"]) == before
    return str(refused.value)


@pytest.mark.parametrize("sql", attacks.STATEMENTS)
def test_other_statements_are_refused(sql, walled):
    assert any(words in refusal(sql, walled) for words in ("only SELECT is allowed", "exactly one SELECT", "must list"))


@pytest.mark.parametrize("sql", attacks.hidden().values(), ids=attacks.hidden().keys())
def test_altering_statements_are_refused_at_every_depth(sql, walled):
    message = refusal(sql, walled)
    # Where DuckDB's parser takes none: a syntax error.
    assert "only SELECT is allowed" in message or "A CTE body must be" in message


@pytest.mark.parametrize("sql", attacks.REACHING)
def test_nothing_but_the_tables_is_read(sql, walled):
    assert "no other file or address" in refusal(sql, walled)


@pytest.mark.parametrize("sql", attacks.LOOKING_AROUND)
def test_settings_and_system_tables_are_refused(sql, walled):
    assert refusal(sql, walled).startswith("query: ")


def test_without_the_walk_nothing_is_written_either(walled):
    _, words = walled
    before = contents(words["outside"])
    with connect(words["home"]) as connection:
        for sql in (*attacks.STATEMENTS, *attacks.hidden().values(), *attacks.REACHING):
            with connection.cursor() as cursor, contextlib.suppress(duckdb.Error):
                cursor.execute(filled(sql, words))
                if cursor.description:
                    cursor.fetchall()
            assert contents(words["outside"]) == before, sql


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{outside}/x.csv'",
        "ATTACH '{outside}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 1",
        "SET temp_directory = '{outside}'",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_text('{home}/link.csv')",
        "SELECT * FROM read_text('{table}')",
    ],
)
def test_the_connection_itself_is_walled(statement, walled):
    connection, words = walled
    with pytest.raises(duckdb.Error, match="disabled|locked"):
        connection.execute(filled(statement, words))


def test_a_table_cannot_be_written_by_its_own_name(walled):
    connection, words = walled
    with pytest.raises(duckdb.Error, match="cannot be written: a query only reads the store"):
        connection.execute(f"COPY (SELECT 1) TO '{words['address']}' (FORMAT parquet, USE_TMP_FILE false)")


ALLOWED = """
FROM curriculum LIMIT 1
TABLE curriculum
DESCRIBE curriculum
DESCRIBE SELECT 1
SUMMARIZE curriculum
SHOW TABLES
SHOW ALL TABLES
WITH a AS (SELECT 1 AS x) SELECT * FROM a -- a comment
WITH a AS MATERIALIZED (SELECT 1 AS x), b AS (FROM a) FROM b
WITH curriculum AS (SELECT * FROM curriculum WHERE step = 1) SELECT count(*) FROM curriculum
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT * FROM r
WITH RECURSIVE r(n, m) USING KEY (n) AS (SELECT 1, 2 UNION SELECT n + 1, m FROM r WHERE n < 3) SELECT * FROM r
VALUES (1), (2);
SELECT 1 UNION ALL BY NAME SELECT 2
SELECT 1 EXCEPT SELECT 3 INTERSECT SELECT 4
PIVOT curriculum ON category IN ('word') USING avg(n_tokens) GROUP BY study
SELECT * FROM (PIVOT curriculum ON category IN ('word', 'code') USING sum(n_tokens))
UNPIVOT (SELECT n_tokens, n_selected FROM curriculum) ON n_tokens, n_selected
SELECT memory.main.curriculum.step FROM memory.main.curriculum
SELECT * EXCLUDE (step) REPLACE (n_tokens * 2 AS n_tokens), COLUMNS('n_.*') FROM curriculum LIMIT 50%
SELECT DISTINCT ON (category) category, step FROM curriculum ORDER BY step DESC NULLS LAST LIMIT 3 OFFSET 0
SELECT count(*) FILTER (step > 1), string_agg(category, ',' ORDER BY step) FROM curriculum GROUP BY GROUPING SETS ((study), ())
SELECT row_number() OVER w, lag(step) OVER w FROM curriculum WINDOW w AS (PARTITION BY study ORDER BY step) QUALIFY row_number() OVER w > 0
SELECT sum(step) OVER (ORDER BY step ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM curriculum
SELECT * FROM curriculum TABLESAMPLE reservoir(1 ROWS) REPEATABLE (1)
SELECT * FROM curriculum AS a ASOF JOIN curriculum AS b ON a.step >= b.step
SELECT * FROM curriculum AS a, LATERAL (SELECT a.step) AS b
SELECT * FROM curriculum AS a POSITIONAL JOIN curriculum AS c
SELECT (SELECT max(step) FROM curriculum AS b WHERE b.study = a.study) FROM curriculum AS a
SELECT list_transform([1, 2], lambda x: x + 1), [x + 1 FOR x IN [1, 2]], {'a': 1}, MAP {'a': 1}, [1, 2][1:2]
SELECT CAST('1' AS DECIMAL(4, 2)), '1'::VARCHAR(3), [1]::INT[1], '{}'::JSON, {'a': 1}::STRUCT(a INT), 'a'::ENUM ('a')
SELECT CASE WHEN 1 > 1 THEN 'a' ELSE 'b' END, 1 BETWEEN 1 AND 2, 1 IN (1, 2), 1 IS NULL, coalesce(1, 2), try_cast('a' AS INT)
SELECT 'a' LIKE 'b', 'a' ILIKE 'b', 'a' SIMILAR TO 'b', 'a' ~ 'b', 'a' COLLATE NOCASE, EXISTS (SELECT 1), 1 = ANY (SELECT 1)
SELECT INTERVAL 1 DAY, DATE '2020-01-01', extract(year FROM now()), current_date, strftime(now(), '%Y'), random(), uuid()
SELECT unnest([1, 2]), generate_series(1, 3), range(3)
SELECT * FROM range(3) AS t(i), generate_series(1, 3), unnest([1, 2]), json_each('{"a": 1}')
SELECT histogram(step), approx_quantile(step, 0.5), corr(step, n_tokens), mode(category), arg_max(step, n_tokens) FROM curriculum
SELECT quantile_cont(step, [0.1, 0.5]), regr_slope(step, n_tokens), list(step ORDER BY step), weighted_avg(step, 2) FROM curriculum
SELECT '{"a": 1}' ->> 'a', to_json({'a': 1}), split_part('a,b', ',', 1), nullif(1, 2), list_sum([1]), fdiv(1, 2), pg_typeof(1)
SELECT regexp_extract('a', '(.)', 1), format('{}', 1), printf('%d', 1), md5('a'), hash(1), upper(category), category.upper() FROM curriculum
SELECT 'a;b', $$;$$, E'\\n', 1_000, 0x1F, 2 ** 3, 5 // 2, ~1, 1 << 2
SELECT 'COPY (SELECT 1) TO x', "step" AS "DROP TABLE" FROM curriculum
"""  # noqa: E501


@pytest.mark.parametrize("sql", ALLOWED.strip().splitlines())
def test_queries_of_every_kind_are_allowed(sql, walled):
    assert select(walled[0], sql).fetchall()


def test_a_pivot_without_values_says_how_to_write_it(walled):
    message = refusal("PIVOT curriculum ON category USING sum(n_tokens)", walled)
    assert "must list its values, as in PIVOT t ON split IN ('train', 'test')" in message


def test_deep_nesting_is_refused_in_words(walled):
    assert "nested too deeply" in refusal(f"SELECT {'abs(' * 900}1{')' * 900}", walled)
    assert refusal(f"SELECT {'(' * 10_000}1{')' * 10_000}", walled).startswith("query: ")


def test_text_that_is_not_utf_8_is_refused_in_words(walled):
    assert refusal("SELECT '\udcff'", walled) == "query: character 9 is not valid UTF-8"


def test_functions_and_macros_of_the_program_itself_are_walked(walled):
    _, words = walled
    with connect(words["home"]) as connection:
        connection.execute("CREATE MACRO twice(x) AS 2 * x; CREATE MACRO peek() AS current_setting('threads')")
        assert select(connection, "SELECT twice(step) FROM curriculum").fetchall() == [(2,), (4,)]
        with pytest.raises(InputError, match="current_setting is not"):
            select(connection, "SELECT peek()")


def test_functions_that_read_the_zone_of_the_session_are_not_refused():
    """DuckDB 2.0.1 calls them consistent within a query only, as it does functions that read settings."""
    rows = """
        ('+', 'CONSISTENT', ['INTEGER', 'INTEGER'], 'INTEGER'),
        ('+', 'CONSISTENT_WITHIN_QUERY', ['TIMESTAMP WITH TIME ZONE', 'INTERVAL'], 'TIMESTAMP WITH TIME ZONE'),
        ('year', 'CONSISTENT_WITHIN_QUERY', ['TIMESTAMPTZ_NS'], 'BIGINT'),
        ('make_timestamptz', 'CONSISTENT_WITHIN_QUERY', ['BIGINT'], 'TIMESTAMP WITH TIME ZONE'),
        ('current_setting', 'CONSISTENT_WITHIN_QUERY', ['VARCHAR'], 'ANY'),
        ('current_schemas', 'CONSISTENT_WITHIN_QUERY', ['BOOLEAN'], 'VARCHAR[]'),
        ('sleep_until', 'VOLATILE', ['TIMESTAMPTZ_NS'], 'BOOLEAN')"""
    found = duckdb.sql(f"""
        SELECT name, list(DISTINCT {_STABILITY})
        FROM (VALUES {rows}) AS t(name, stability, parameter_types, return_type) GROUP BY name""").fetchall()
    assert {name for name, stabilities in found if stabilities == ["CONSISTENT"]} == {"+", "year", "make_timestamptz"}
