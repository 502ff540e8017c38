"""docs/querying.md: all its examples run as written over a small store; SQL and polars give the same answers."""

import re

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.markdown import fenced_blocks
from tests.support.paths import ROOT
from tests.support.tiny_store import make_store
from tokenuq_ml.tables.sql import connect, select

TEXT = (ROOT / "docs/querying.md").read_text()
ASKED, _, FURTHER = TEXT.partition("## Run SQL that is not your own")
INTRODUCTION, *QUESTIONS = re.split(r"^### ", ASKED, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store")).home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.setenv("TOKENUQ_HOME", str(home))


def run(python):
    names = {}
    exec("import polars as pl\nfrom tokenuq_ml.tables import connect, scan\n" + python, names)
    return names


def test_there_are_a_dozen_questions():
    assert len(QUESTIONS) >= 12


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: text.partition("\n")[0])
def test_sql_and_polars_give_one_answer(question, at_home):
    (sql,), (python,) = fenced_blocks(question, "sql"), fenced_blocks(question, "python")
    with connect() as connection:
        by_sql = pl.from_arrow(select(connection, sql).to_arrow_table())
    by_polars = run(python)["answer"].with_columns(pl.col(pl.Categorical).cast(pl.String))
    assert len(by_sql) > 0
    assert_frame_equal(by_sql, by_polars, check_dtypes=False, rel_tol=1e-5, abs_tol=1e-6)


def test_the_introduction_runs(at_home, capsys):
    for python in fenced_blocks(INTRODUCTION, "python"):
        run(python)
    assert capsys.readouterr().out.count("bald") == 2


def test_the_further_examples_run(at_home):
    examples = fenced_blocks(FURTHER, "python")
    assert len(examples) == 2
    for python in examples:
        run(python)
