"""docs/querying.md: every question's SQL and polars run as written over a small store, and give one answer."""

import re

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.paths import ROOT
from tests.support.tiny_store import make_store
from tokenuq_ml.tables.sql import connect, select

TEXT = (ROOT / "docs/querying.md").read_text()
INTRODUCTION, *QUESTIONS = re.split(r"^### ", TEXT.partition("## How fast")[0], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store")).home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.setenv("TOKENUQ_HOME", str(home))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(python):
    names = {}
    exec("import polars as pl\nfrom tokenuq_ml.tables import connect, scan\n" + python, names)
    return names


def test_there_are_a_dozen_questions():
    assert len(QUESTIONS) >= 12


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: text.partition("\n")[0])
def test_sql_and_polars_give_one_answer(question, at_home):
    (sql,), (python,) = blocks(question, "sql"), blocks(question, "python")
    with connect() as connection:
        by_sql = pl.from_arrow(select(connection, sql).to_arrow_table())
    by_polars = run(python)["answer"].with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert len(by_sql) > 0
    assert_frame_equal(by_sql, by_polars, check_dtypes=False, rel_tol=1e-5, abs_tol=1e-6)


def test_the_introduction_runs(at_home, capsys):
    for python in blocks(INTRODUCTION, "python"):
        run(python)
    assert capsys.readouterr().out.count("bald") == 2
