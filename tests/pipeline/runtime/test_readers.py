"""Standard output whose reader is gone, or whose disk is full: the run goes on, and other commands end by 141."""

import errno
import os
import subprocess
import sys

import pytest

from tests.support.toy_pipeline import fake_environment
from tokenuq_ml.disk import DiskFull
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import FAILED, READER_GONE, USAGE
from tokenuq_pipeline.runtime.console import Console
from tokenuq_pipeline.runtime.full_disks import full_disks_in_words
from tokenuq_pipeline.runtime.readers import READER_LEFT, is_gone

RUN = """
import sys
from pathlib import Path
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
toy = Toy(Path(sys.argv[1]))
with toy.instance() as instance:
    launcher = StageLauncher(package="fake_entrypoints")
    code = run_study(toy.defs(launcher=launcher), toy_config(), STUDY, [], instance, toy.store)
print("complete", len(toy.store.assets()), file=sys.stderr)
sys.exit(code)
"""


class Broken:
    """A stream that takes `lines` lines."""

    def __init__(self, lines, number):
        self.lines, self._left, self._number = [], lines, number

    def write(self, text):
        if text == "\n":
            return
        if not self._left:
            raise OSError(self._number, os.strerror(self._number))
        self._left -= 1
        self.lines.append(text)

    def flush(self):
        """Nothing is buffered."""


@pytest.mark.parametrize(
    "number, why",
    [
        (errno.EPIPE, "the reader of standard output is gone"),
        (errno.ENOSPC, "standard output cannot be written (No space left on device)"),
        (errno.EIO, "standard output cannot be written (Input/output error)"),
    ],
)
def test_lines_go_on_elsewhere(number, why):
    console = Console()
    console.stream, console.other_stream = Broken(2, number), Broken(4, number)
    first, second = console.stream, console.other_stream
    for text in "abcdef":
        console.line(text)
    assert [line.split()[-1] for line in first.lines] == ["a", "b"]
    assert second.lines[0] == f"{why}: the run goes on, and its lines follow here; Ctrl-C stops it"
    # What cannot be printed there either is dropped.
    assert [line.split()[-1] for line in second.lines[1:]] == ["c", "d", "e"]


def test_a_closed_reader_is_seen_before_anything_is_written():
    read, write = os.pipe()
    assert not is_gone(write)
    os.close(read)
    assert is_gone(write)
    os.close(write)
    assert not is_gone(write)


@pytest.mark.heavy
def test_a_run_whose_reader_leaves_goes_on_to_its_end(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "toy")],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **fake_environment(tmp_path)},
    )
    lines = [process.stdout.readline() for _ in range(3)]
    process.stdout.close()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and all(lines), err
    assert err.startswith("the reader of standard output is gone: the run goes on, and its lines follow here")
    assert "Traceback" not in err and "complete 1" in err
    # Its times and tables are printed too.
    assert "peak memory" in err


def test_a_reader_that_left_last_is_noticed():
    """In a process of its own, because descriptors are replaced."""
    code = (
        "import os, sys\nfrom tokenuq_pipeline.commands.make_assets import quiet_streams\n"
        "from tokenuq_pipeline.runtime.console import Console\n"
        "read, write = os.pipe()\nos.dup2(write, 1)\nos.close(write)\n"
        "with quiet_streams(Console()):\n    os.close(read)\n"
        "print('the table')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines() == [
        "the reader of standard output is gone: what it would have read follows here",
        "the table",
    ]


def test_a_result_whose_reader_leaves_in_the_middle_is_printed_on_standard_error():
    """In a process of its own, because descriptors are replaced."""
    code = (
        "import os\nfrom tokenuq_pipeline.runtime.readers import print_on\n"
        "read, write = os.pipe()\nos.dup2(write, 1)\nos.close(write)\n"
        "print_on('read')\nos.close(read)\nprint_on('a table\\n' + '-' * 200)\nprint_on('the error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines() == [READER_LEFT, "a table", "-" * 200, "the error"]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), READER_GONE, ""),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), FAILED, "error: the disk at "),
        (MemoryError(), FAILED, "error: tokenuq ran out of memory: the memory of this machine is "),
        (DiskFull("the disk at / has too little space"), USAGE, "error: the disk at / has too little space"),
    ],
)
def test_commands_end_in_words(monkeypatch, capsys, error, code, said):
    def fail(options):
        raise error

    monkeypatch.setattr(cli.status, "status_command", fail)
    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(options):
        raise KeyError("x")

    monkeypatch.setattr(cli.status, "status_command", fail)
    with pytest.raises(KeyError):
        cli.main(["status"])


def test_a_step_on_a_full_disk_fails_without_a_retry(tmp_path):
    import dagster as dg

    with pytest.raises(dg.Failure) as failure, full_disks_in_words(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failure.value.description.startswith("the disk at ") and not failure.value.allow_retries
    with pytest.raises(dg.RetryRequested), full_disks_in_words(tmp_path):
        raise dg.RetryRequested(max_retries=1)
    with pytest.raises(KeyError), full_disks_in_words(tmp_path):
        raise KeyError("x")


def test_a_step_that_is_closed_on_a_full_disk_says_nothing_more(tmp_path):
    def step():
        with full_disks_in_words(tmp_path):
            try:
                yield
            finally:
                raise OSError(errno.ENOSPC, "No space left on device")

    steps = step()
    next(steps)
    steps.close()
