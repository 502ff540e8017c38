"""`tokenuq query` as a process: its limits of memory and time, and what is left after it was ended in any way."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from tests.support.tiny_store import make_store
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import READER_GONE
from tokenuq_pipeline.commands.query_process import Query, run_query

SORT = "SELECT * FROM range(200000000) AS t(i) ORDER BY hash(i)"
ENDLESS = "SELECT count(*) FROM range(10000000) AS a(i), range(1000000) AS b(j) WHERE (i + j) % 7 = 3"

ONE_LONG_CALL = "SELECT levenshtein(repeat('ab', 60000), repeat('ba', 60000))"
"""DuckDB looks for an interruption between calls of a function only."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store")).home


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def start(home, temporary, monkeypatch):
    """Start `tokenuq query`; kill it at the end."""
    monkeypatch.setenv("TOKENUQ_HOME", str(home))
    processes = []

    def run(*arguments, **options):
        command = [sys.executable, "-m", "tokenuq_pipeline.cli", "query", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def child_of(process):
    return int(open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()[0])


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def spilled(temporary):
    found = 0
    for path in temporary.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size if path.parent != temporary else 0
    return found


@pytest.mark.slow
def test_a_child_answers_within_its_limits(home, temporary, tmp_path):
    with open(tmp_path / "out", "w+b") as output:
        asked = Query(str(home), "SELECT study, count(*) AS tokens FROM tokens GROUP BY 1 ORDER BY 1", "csv", 60)
        assert run_query(asked, output) == 2
    assert (tmp_path / "out").read_text() == "study,tokens\nother,448\nquickstart,448\n"
    with pytest.raises(InputError, match=r"needs more memory than the 1 GiB .* \(Out of Memory"):
        run_query(Query(str(home), "SELECT length(repeat('x', 4000000000))", "table", 60), None)
    assert list(temporary.iterdir()) == []


@pytest.mark.heavy
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 4000000000))",
        "SELECT length(repeat('x', 900000000))",
        "SELECT repeat('x', 300000000)",
        "SELECT list(range) FROM range(300000000)",
        "SELECT len(range(1000000000))",
        "SELECT string_agg(repeat('x', 1000), '') FROM range(3000000)",
        "SELECT array_agg(repeat('x', 100000)) FROM range(30000)",
        "SELECT lpad('', 2000000000, 'x')",
        "SELECT max(length(repeat(i::VARCHAR, 100000000))) FROM range(20) AS t(i)",
        "SELECT map_from_entries(list((i, i))) FROM range(50000000) AS t(i)",
    ],
)
def test_memory_is_limited(start, temporary, sql, tmp_path):
    # The longest way of a value: as text in an object.
    process = start(sql, "--output", tmp_path / "out.json")
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 2)
    if process.returncode:
        assert err.startswith(b"error: query: ") and b"memory" in err and b"Traceback" not in err
        assert not (tmp_path / "out.json").exists()
    # Of the largest child of all so far.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2**20
    assert list(temporary.iterdir()) == []


@pytest.mark.heavy
def test_a_sort_that_spills_is_not_refused(start, temporary, tmp_path):
    process = start(SORT.replace("200000000", "100000000"), "--output", tmp_path / "x.parquet")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert pl.scan_parquet(tmp_path / "x.parquet").select(pl.len(), pl.col("i").sum()).collect().row(0) == (
        100_000_000,
        sum(range(100_000_000)),
    )
    assert list(temporary.iterdir()) == []


@pytest.mark.heavy
@pytest.mark.parametrize("sql", [ENDLESS, ONE_LONG_CALL])
def test_time_is_limited(start, temporary, sql):
    process = start(sql, "--timeout", 5)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"error: query: stopped after 5 s, the limit of --timeout; ")
    assert list(temporary.iterdir()) == []


@pytest.mark.heavy
def test_the_time_of_a_slow_reader_is_not_the_querys(start):
    process = start("SELECT range AS n FROM range(100000)", "--format", "csv", "--timeout", 10)
    first = process.stdout.read(10)
    time.sleep(14)
    rest = process.stdout.read()
    assert process.wait() == 0 and len((first + rest).splitlines()) == 100_001


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_whatever_ends_it(start, temporary, tmp_path, number):
    output = tmp_path / "out.csv"
    process = start(SORT, "--output", output)
    wait_until(lambda: spilled(temporary) > 2**24)
    child = child_of(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number) and b"Traceback" not in err
    wait_until(lambda: not os.path.exists(f"/proc/{child}"))
    if number == signal.SIGKILL:
        assert len(list(temporary.iterdir())) == 1
        assert start("SELECT 1").wait(60) == 0
        for left in tmp_path.glob(".out.csv.*"):
            os.utime(left, (0, 0))
        assert start("SELECT 1", "--output", output).wait(60) == 0
        output.unlink()
    assert list(temporary.iterdir()) == [] and list(tmp_path.iterdir()) == [temporary]


@pytest.mark.heavy
def test_a_killed_child_is_one_sentence(start, temporary, tmp_path):
    process = start(SORT, "--output", tmp_path / "out.csv")
    wait_until(lambda: spilled(temporary) > 2**22)
    os.kill(child_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err.startswith(b"error: query: its process ended by SIGKILL, most likely")
    assert list(temporary.iterdir()) == [] and list(tmp_path.iterdir()) == [temporary]


@pytest.mark.heavy
def test_the_end_of_the_reader_ends_the_query(start, temporary):
    process = start("SELECT range AS n FROM range(10000000000)", "--format", "csv")
    assert process.stdout.readline() == b"n\n"
    process.stdout.close()
    assert process.wait(30) == READER_GONE and process.stderr.read() == b""
    assert list(temporary.iterdir()) == []


@pytest.mark.heavy
def test_the_working_directory_lends_no_modules(start, tmp_path):
    (tmp_path / "duckdb.py").write_text("open('executed', 'w')")
    (tmp_path / "json.py").write_text("open('executed', 'w')")
    python = "import sys; sys.path.remove(''); from tokenuq_pipeline.cli import main; main(['query', 'SELECT 1'])"
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True, timeout=60)
    assert not (tmp_path / "executed").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("mib", [500, 900])
def test_a_limit_from_outside_is_one_sentence(start, temporary, mib):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20))

    process = start("SELECT count(*) FROM tokens", preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and b"memory" in err and b"Traceback" not in err
    assert list(temporary.iterdir()) == []
