"""`tokenuq query`: what it prints and writes, and its exit codes; here without the child process."""

import json
import os
import socket
import time

import polars as pl
import pytest

from tests.support.tiny_store import STUDIES, make_store
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import query as command
from tokenuq_pipeline.commands import query_child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store")).home


@pytest.fixture
def query(home, monkeypatch, capfd):
    monkeypatch.setenv("TOKENUQ_HOME", str(home))

    def answer(asked, stream):
        with open(os.dup(stream.fileno() if stream else 1), "wb") as output:
            return query_child.answer(asked, output)

    monkeypatch.setattr(command, "answer", answer)

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
        (["SELECT 1", "--output", "/dev/null"], "is a device; name a regular file"),
        (["SELECT 1", "--output", "/dev/stdout"], "is a symbolic link; name a regular file"),
        (["SELECT 1", "--output", "/tmp"], "is a folder; name a regular file"),
        (["SELECT 1", "--output", "a\0b"], "null byte; name another path"),
        (["SELECT error(chr(27) || '[2J' || chr(8238))"], r"\x1b[2J\u202e"),
        (['SELECT 1 AS "a" FROM "\x1b]0;title\x07"'], r"table \x1b]0;title\x07 does not exist"),
    ],
)
def test_what_is_wrong_is_one_message(query, arguments, message):
    code, out, err = query(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and "Traceback" not in err


def test_the_store_itself_is_not_written_to(query, home):
    code, _, err = query("SELECT 1", "--output", home / "token_losses/mine.csv")
    assert code == 2 and "is in the store" in err and not (home / "token_losses/mine.csv").exists()


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "dangling", "folder"])
def test_only_regular_files_are_written(query, tmp_path, kind):
    path, target = tmp_path / "out.csv", tmp_path / "target"
    target.write_text("old")
    if kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.close()
    else:
        makes = {
            "fifo": lambda: os.mkfifo(path),
            "link": lambda: path.symlink_to(target),
            "dangling": lambda: path.symlink_to(tmp_path / "none"),
            "folder": path.mkdir,
        }
        makes[kind]()
    before = path.lstat()
    code, out, err = query("SELECT 1", "--output", path)
    assert (code, out) == (2, "") and "name a regular file or a new one" in err
    assert path.lstat().st_ino == before.st_ino and path.lstat().st_mode == before.st_mode
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_the_store_is_known_through_other_paths(query, home, tmp_path):
    (tmp_path / "way").symlink_to(home)
    for path in (tmp_path / "way/x.csv", home / "selections/../x.csv"):
        code, _, err = query("SELECT 1", "--output", path)
        assert code == 2 and "is in the store" in err
    assert not (home / "x.csv").exists()


def test_what_a_killed_query_left_of_the_file_is_removed(query, tmp_path):
    old, young = (tmp_path / f".x[1].csv.1-{name}.writing" for name in ("old", "young"))
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 3600,) * 2)
    assert query("SELECT 1 AS a", "--output", tmp_path / "x[1].csv")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].csv", young.name}


def test_a_damaged_table_refuses_its_own_queries_only(query, tmp_path, monkeypatch):
    store = make_store(tmp_path / "store")
    path = store.home / "token_losses/study=other/part-0.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    for sql in ("SELECT count(*) FROM token_losses", "SELECT * FROM (SELECT bald FROM TOKENS) LIMIT 1"):
        code, out, err = query(sql)
        assert (code, out) == (2, "") and f"{path}: its SHA-256 begins with" in err and "tokenuq verify --forget" in err
    assert query("SELECT count(*) AS n FROM token_uncertainty")[:2] == (0, "  n\n───\n896\n(1 row)\n")
    assert query("--schema")[0] == 0


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_no_format_controls_a_terminal(home, form):
    terminal, end = os.openpty()
    sql = "SELECT 'a' || chr(27) || '[31m' || chr(155) || '31m' || chr(8238) || chr(13) AS \"x\x1b]0;t\x07\""
    with open(end, "wb", buffering=0) as stream:
        query_child.answer(query_child.Query(str(home), sql, form, 0), stream)
        shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    # The terminal's own line ends are \r\n.
    assert not set(shown.replace("\r\n", "\n")) & set("\x1b\x9b\u202e\r\x07") and r"31m" in shown


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_a_timeout_is_a_number_of_seconds(query, seconds, capfd):
    with pytest.raises(SystemExit):
        query("SELECT 1", "--timeout", seconds)
    assert "--timeout" in capfd.readouterr().err


def test_messages_on_usage_do_not_control_a_terminal(query, capfd):
    for arguments in (["SELECT 1", "--\x1b]0;t\x07"], ["SELECT 1", "--format", "\x1b[31m"], ["SELECT 1", "\u202e"]):
        with pytest.raises(SystemExit):
            query(*arguments)
        assert not set(capfd.readouterr().err) & set("\x1b\x07\u202e")
