"""Errors that mean that memory ran out, as every library in use raises them, and the limits of a process."""

import errno
import resource

import pytest

from tokenuq_ml import out_of_memory
from tokenuq_ml.errors import InputError
from tokenuq_ml.out_of_memory import MemoryLimit, kills_by_limit, limits_of, memory_sentence, ran_out
from tokenuq_ml.system_errors import is_system_error

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3 GiB is free. "
    "Process 12 has 75.90 GiB memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch, and more."
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 10000000000 bytes from file </tmp/m>: Cannot allocate memory (12)"),
        RuntimeError(CUDA),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        type("OutOfMemoryError", (RuntimeError,), {})("asked for too much"),
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "memory allocation of 80000000000 bytes failed",
        "pyarrow.lib.ArrowMemoryError: malloc of size 10000000000 failed",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 74.5 GiB for an array",
        "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
    ],
)
def test_every_librarys_error_is_recognised(error):
    assert ran_out(error)


def test_causes_are_searched_and_sentences_of_ours_are_not():
    try:
        raise ValueError("no such model") from MemoryError()
    except ValueError as error:
        assert ran_out(error) and is_system_error(error)
    for error in (InputError("row 3: 'out of memory'"), ValueError("memory"), OSError(errno.EACCES, "out of memory")):
        assert not ran_out(error) and not is_system_error(error)


def test_missing_threads_are_a_lack_of_memory_under_a_limit_only(monkeypatch):
    error = RuntimeError("can't start new thread")
    assert not ran_out(error)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**30, -1))
    assert ran_out(error) and ran_out("ImportError: libtorch_cpu.so: failed to map segment from shared object")


def test_the_sentence_has_stage_peak_limit_and_what_helps(monkeypatch):
    limits = [MemoryLimit(2**31, "the limit of data (`ulimit -d`)"), MemoryLimit(2**34, "the memory of this machine")]
    monkeypatch.setattr(out_of_memory, "limits_of", lambda: limits)
    assert memory_sentence("s/a/train_student", "train_student", "MemoryError", 1.5 * 2**30) == (
        "s/a/train_student ran out of memory: it had 1.50 GiB at most, and the limit of data (`ulimit -d`) is 2.00 GiB "
        "and the memory of this machine is 16.00 GiB; a smaller `train.micro_batch_size` or `max_length` needs less, "
        "and `precision.training: bfloat16` about half; `tokenuq plan` estimates the memory of each stage"
    )


def test_a_gpu_says_itself_what_it_has():
    said = memory_sentence("s/train_teacher", "train_teacher", f"OutOfMemoryError: {CUDA}")
    assert "ran out of GPU memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB" in said
    assert "total capacity of 79.10 GiB" in said and "allocated by PyTorch" not in said


def test_limits_of_this_process(monkeypatch, tmp_path):
    assert limits_of()[-1].name == "the memory of this machine"
    assert limits_of(1) and kills_by_limit() >= 0
    monkeypatch.setattr(out_of_memory, "_group_folders", lambda pid: [tmp_path])
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert limits_of()[0] == MemoryLimit(2**20, "the limit of the container or control group")
    assert kills_by_limit() == 2
    (tmp_path / "memory.max").write_text("max\n")
    assert len(limits_of()) == 1


@pytest.mark.parametrize(
    "line, expected",
    [
        ("0::/user.slice/run", ["user.slice/run", "user.slice", ""]),
        ("4:memory:/docker/a", ["memory/docker/a", "memory/docker", "memory"]),
        ("5:cpu,cpuacct:/docker/a", []),
    ],
)
def test_control_groups_of_both_versions(monkeypatch, tmp_path, line, expected):
    monkeypatch.setattr(out_of_memory, "_read", lambda path: line)
    monkeypatch.setattr(out_of_memory, "_GROUPS", tmp_path)
    assert list(out_of_memory._group_folders(7)) == [tmp_path / one for one in expected]
