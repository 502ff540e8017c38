"""The failure of a child from how it ended: what it says, and whether a retry may help."""

import errno
import signal

import pytest

from tokenuq_ml import out_of_memory
from tokenuq_ml.disk import DiskFull
from tokenuq_ml.errors import InputError
from tokenuq_ml.out_of_memory import MemoryLimit
from tokenuq_ml.stages import failures, runner
from tokenuq_ml.stages.failures import NO_MEMORY, NO_SPACE, known_failure, write_reserve
from tokenuq_ml.stages.request import StageRequest
from tokenuq_pipeline.runtime import stage_failure
from tokenuq_pipeline.runtime.child_output import shown_tail
from tokenuq_pipeline.runtime.stage_failure import MemoryWatch, failure_of

GIB = 2**30
LIMITS = [MemoryLimit(2 * GIB, "the limit of data (`ulimit -d`)"), MemoryLimit(16 * GIB, "the memory of this machine")]


class Output:
    """Output of a child that has ended."""

    def __init__(self, stderr):
        self._stderr = stderr

    def tail(self):
        return shown_tail(self._stderr.encode())

    def end_of_stderr(self):
        return self._stderr


@pytest.fixture
def request_(tmp_path):
    return StageRequest(
        entrypoint="train_student", study="s", ablation="a", assets={}, inputs={}, work_dir=str(tmp_path / "work")
    )


@pytest.fixture
def failed(request_, tmp_path, monkeypatch):
    """How a child failed that ended with a code and an output."""
    monkeypatch.setattr(out_of_memory, "limits_of", lambda: LIMITS)
    monkeypatch.setattr(stage_failure, "limits_of", lambda: LIMITS)
    kills = [0]
    monkeypatch.setattr(stage_failure, "kills_by_limit", lambda: kills[0])

    def failed(code, stderr="", refusal=None, peak=GIB // 2, killed=False):
        memory = MemoryWatch(1)
        memory.peak, kills[0] = peak, int(killed)
        return failure_of(request_, tmp_path, code, refusal, Output(stderr), memory)

    return failed


def test_a_sentence_of_the_child_is_all_that_is_said(failed):
    failure = failed(NO_SPACE, "Traceback", "s/a/train_student: the disk at /d is full")
    assert failure.description == "s/a/train_student: the disk at /d is full" and not failure.crashed


def test_a_full_disk_that_took_no_sentence_is_told_by_the_exit_code(failed, tmp_path):
    failure = failed(NO_SPACE)
    assert failure.description.startswith("s/a/train_student: the disk at ") and not failure.crashed
    assert f"with {tmp_path}" in failure.description


@pytest.mark.parametrize(
    "code, stderr",
    [
        (1, "Traceback ...\nOSError: [Errno 28] No space left on device\n"),
        (101, "thread 'main' panicked at src/a.rs:\nOs { code: 28, kind: StorageFull, message: ... }\nnote: run with"),
        (-signal.SIGABRT, "terminate called\n  what():  IO Error: Could not write file: No space left on device\n"),
    ],
)
def test_a_full_disk_is_recognised_in_the_last_lines(failed, code, stderr):
    failure = failed(code, stderr)
    assert " is full: " in failure.description and not failure.crashed


def test_an_earlier_warning_of_a_full_disk_is_not_the_cause(failed):
    stderr = "warning: cache: No space left on device\n" + "line\n" * 10 + "KeyError: 'x'\n"
    failure = failed(1, stderr)
    assert failure.description == "s/a/train_student ended with exit code 1: KeyError: 'x'" and failure.crashed


@pytest.mark.parametrize(
    "code, stderr",
    [
        (NO_MEMORY, ""),
        (1, "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.\n"),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'\n  what(): std::bad_alloc"),
        (-signal.SIGABRT, "memory allocation of 80000000000 bytes failed\nstack backtrace:\n" + "  at x\n" * 50),
    ],
)
def test_a_lack_of_memory_is_told_and_not_retried(failed, code, stderr):
    failure = failed(code, stderr)
    assert failure.description.startswith(
        "s/a/train_student ran out of memory: it had 0.50 GiB at most, and the limit of data (`ulimit -d`) is 2.00 GiB"
    )
    assert not failure.crashed


def test_a_kill_by_the_system_is_retried_unless_the_stage_alone_met_the_limit(failed):
    own = failed(-signal.SIGKILL, peak=1.9 * GIB, killed=True)
    others = failed(-signal.SIGKILL, peak=0.2 * GIB, killed=True)
    unknown = failed(-signal.SIGKILL, peak=1.9 * GIB)
    assert not own.crashed and others.crashed and unknown.crashed
    assert (
        own.description.endswith("(the system killed it)") and "ran out of memory: it had 1.90 GiB" in own.description
    )
    assert unknown.description.startswith(
        "s/a/train_student was killed (SIGKILL), most likely because memory ran out: "
    )


def test_signals_interrupts_and_bugs_are_named(failed):
    assert failed(-signal.SIGSEGV).description == "s/a/train_student was killed (SIGSEGV)"
    assert failed(runner.INTERRUPTED).description == "s/a/train_student was interrupted"
    assert failed(2, "why\n").description == "s/a/train_student rejected its input: why"
    assert not failed(2).crashed and failed(1).crashed and failed(-signal.SIGSEGV).crashed


def test_the_watch_sees_the_peak_of_a_process(monkeypatch):
    watch = MemoryWatch(1)
    monkeypatch.setattr(stage_failure, "peak_memory", lambda pid: 5 * GIB)
    watch.look()
    monkeypatch.setattr(stage_failure, "peak_memory", lambda pid: None)
    monkeypatch.setattr(stage_failure, "LOOK_S", 0)
    watch.look()
    assert watch.peak == 5 * GIB


# What the child says.


def test_the_child_names_its_stage_disk_and_memory(request_, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "part-0.parquet"))
    code, message = known_failure(full, request_, tmp_path, GIB)
    assert code == NO_SPACE and message.startswith("s/a/train_student: the disk at ")
    code, message = known_failure(MemoryError(), request_, tmp_path, GIB)
    assert code == NO_MEMORY and message.startswith("s/a/train_student ran out of memory: it had 1.00 GiB at most")
    assert known_failure(InputError("No space left on device"), request_, tmp_path, GIB) is None
    assert known_failure(KeyError("x"), request_, tmp_path, GIB) is None


class Reporter:
    """A reporter whose messages find room once the reserve is gone."""

    def __init__(self, folder):
        self.said, self._reserve = [], folder / failures.RESERVE

    def bad_input(self, message):
        if self._reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        self.said.append(message)


@pytest.mark.parametrize(
    "error, code",
    [
        (InputError("row 3: no answer"), 2),
        (DiskFull("the disk at / is full"), NO_SPACE),
        (OSError(errno.ENOSPC, "No space left on device"), NO_SPACE),
        (MemoryError(), NO_MEMORY),
        (KeyError("x"), 1),
    ],
)
def test_the_last_message_finds_the_room_that_was_reserved(request_, tmp_path, monkeypatch, error, code):
    request_.write(tmp_path / "request.json")
    write_reserve(tmp_path)
    monkeypatch.setattr(runner.sys, "argv", ["x", str(tmp_path / "request.json")])
    reporter = Reporter(tmp_path)

    def run(request, reporter):
        raise error

    assert runner._run(run, reporter) == code
    assert len(reporter.said) == (code != 1)


def test_without_any_room_the_exit_code_remains(request_, tmp_path, monkeypatch):
    request_.write(tmp_path / "request.json")
    write_reserve(tmp_path)
    monkeypatch.setattr(runner.sys, "argv", ["x", str(tmp_path / "request.json")])
    monkeypatch.setattr(runner, "release_reserve", lambda folder: None)

    def run(request, reporter):
        raise OSError(errno.EROFS, "Read-only file system")

    assert runner._run(run, Reporter(tmp_path)) == NO_SPACE
