"""`tokenuq query`: what it prints and writes, and its exit codes."""

import json

import polars as pl
import pytest

from tests.support.tiny_store import STUDIES, make_store
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store")).home


@pytest.fixture
def query(home, monkeypatch, capfd):
    monkeypatch.setenv("TOKENUQ_HOME", str(home))

    def run(*arguments):
        code = cli.main(["query", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


def test_a_table_for_reading(query):
    code, out, err = query("SELECT study, count(*) AS tokens FROM tokens GROUP BY study ORDER BY study")
    assert (code, err) == (0, "")
    assert out == "study       tokens\n──────────  ──────\nother          448\nquickstart     448\n(2 rows)\n"


def test_formats_agree_with_polars(query, home):
    sql = "SELECT example_id, position, loss FROM token_losses WHERE study = 'other' ORDER BY ALL"
    expected = scan("token_losses", home, study="other").select("example_id", "position", "loss").collect()
    assert pl.read_csv(query(sql, "--format", "csv")[1].encode(), schema=expected.schema).equals(expected)
    assert pl.DataFrame(json.loads(query(sql, "--format", "json")[1]), schema=expected.schema).equals(expected)


def test_a_file_by_its_ending(query, home, tmp_path):
    sql = "SELECT * FROM selections WHERE ablation = 'mle'"
    for name in ("x.parquet", "x.csv", "x.json"):
        code, out, err = query(sql, "--output", tmp_path / name)
        assert (code, out) == (0, "") and err.endswith(f"{name}: 672 rows\n")
    assert pl.read_parquet(tmp_path / "x.parquet").height == pl.read_csv(tmp_path / "x.csv").height == 672
    assert len(json.loads((tmp_path / "x.json").read_text())) == 672
    assert {path.name for path in tmp_path.iterdir()} == {"x.parquet", "x.csv", "x.json"}


def test_a_query_that_fails_on_its_way_leaves_the_old_file(query, tmp_path):
    (tmp_path / "x.csv").write_text("old")
    sql = "SELECT CASE WHEN range = 1000000 THEN error('stop here') END FROM range(2000000)"
    code, _, err = query(sql, "--output", tmp_path / "x.csv")
    assert code == 2 and err.startswith("error: query: ") and "stop here" in err
    assert (tmp_path / "x.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_schema(query):
    code, out, _ = query("--schema")
    paragraphs = {text.partition(":")[0]: text for text in out.split("\n\n")}
    assert code == 0 and f"{len(STUDIES) * 448:,} rows" in paragraphs["tokens"]
    assert "bald" in paragraphs["token_uncertainty"] and "mean_k KL(p_k || mean p)" in paragraphs["token_uncertainty"]
    for study in STUDIES:
        # As in tiny_tables: a thousandth of each token's BALD, on the first 50 tokens.
        (line,) = (one for one in paragraphs["token_uncertainty"].splitlines() if f"bald in {study}: " in one)
        assert "nats, mean bald 0.00" in line and line.endswith("on 50 tokens of bald_reference")
        assert 0.05 < float(line.partition("(")[2].partition("%")[0]) < 0.2
    assert paragraphs["curriculum"].startswith("curriculum: 0 rows. ")
    listed = pl.read_csv(query("--schema", "--format", "csv")[1].encode())
    assert listed.columns == ["table", "column", "type", "meaning", "rows"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either a SELECT"),
        (["SELECT 1", "--schema"], "give either a SELECT"),
        (["SELECT los FROM token_losses"], '"loss"'),
        (["SELECT * FROM read_csv('/etc/passwd')"], "no other file or address"),
        (["DROP VIEW tokens"], "only SELECT"),
        (["SELECT CAST(token AS INT) FROM token_losses"], "Could not convert string"),
        (["SELECT 1", "--output", "/nowhere/at/all.csv"], "name an existing folder"),
    ],
)
def test_what_is_wrong_is_one_message(query, arguments, message):
    code, out, err = query(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and "Traceback" not in err


def test_the_store_itself_is_not_written_to(query, home):
    code, _, err = query("SELECT 1", "--output", home / "token_losses/mine.csv")
    assert code == 2 and "is in the store" in err and not (home / "token_losses/mine.csv").exists()
