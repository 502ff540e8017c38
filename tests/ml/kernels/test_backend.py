"""Each device gets its backend, rows follow memory, and what cannot run is refused in one sentence."""

import pytest
import torch

from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import backend as backends
from tokenuq_ml.kernels.backend import Backend, backend_of, default_name, use_backend
from tokenuq_ml.kernels.head import Head, blocks, chunks

V = 128_256
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)


@pytest.mark.parametrize(
    "device, triton, name",
    [("cpu", True, "cpu"), ("cuda", True, "triton"), ("cuda", False, "torch"), ("mps", True, "torch")],
)
def test_a_device_has_its_backend(device, triton, name, monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: triton)
    assert default_name(torch.device(device)) == name


def test_a_backend_is_chosen_for_a_process_or_by_the_environment(monkeypatch):
    like = torch.zeros(1)
    assert backend_of(like).name == "cpu" and not backend_of(like).is_accelerator
    with use_backend("torch"):
        assert backend_of(like) == Backend("torch") and backend_of(like).is_accelerator
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backend_of(like).name == "torch"
    with use_backend("cpu"):
        assert backend_of(like).name == "cpu"


def test_what_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cude")
    with pytest.raises(InputError, match="no backend is called 'cude'; known are cpu, torch, triton"):
        backend_of(torch.zeros(1))
    monkeypatch.setenv(backends.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for installed, message in ((False, "needs Triton, which is not installed"), (True, "set TRITON_INTERPRET=1")):
        backends._backend.cache_clear()
        monkeypatch.setattr(backends, "has_triton", lambda installed=installed: installed)
        with pytest.raises(InputError, match=message):
            backend_of(torch.zeros(1))


@pytest.mark.parametrize("gib, rows", [(80, 2048), (16, 2048), (3, 1024), (0.001, 1)])
def test_rows_of_a_product_follow_free_memory(gib, rows, monkeypatch):
    monkeypatch.setattr(backends, "free_bytes", lambda device: int(gib * 2**30))
    assert Backend("triton").rows_per_product(CUDA, 2 * V) == rows
    # Two matrices of logits, a student's and a teacher's, share the memory.
    assert Backend("triton").rows_per_product(CUDA, 4 * V) == (rows if gib >= 16 else max(1, rows // 2))


def test_free_memory_has_what_pytorch_has_reserved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (("mem_get_info", (5, 80)), ("memory_reserved", 30), ("memory_allocated", 10)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert backends.free_bytes(CUDA) == 25
    assert backends.free_bytes(torch.device("xpu")) == backends.ASSUMED_FREE_BYTES


def test_a_cpu_cuts_by_its_cache_and_an_accelerator_by_its_memory(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(backends, "free_bytes", lambda device: 64 * 2**30)
    head = Head(torch.empty(V, 0, dtype=torch.bfloat16))
    sizes = {}
    for name in ("cpu", "torch"):
        with use_backend(name):
            sizes[name] = [next(cut(4096, head)).stop for cut in (chunks, blocks)]
    assert sizes == {"cpu": [261, 2], "torch": [2048, 2048]}


def test_a_product_is_kept_only_on_an_accelerator_with_memory_for_it(monkeypatch):
    monkeypatch.setattr(backends, "free_bytes", lambda device: 4 * 2**30)
    cpu, triton = Backend("cpu"), Backend("triton")
    assert triton.keeps(CUDA, 2**29) and not triton.keeps(CUDA, 2**29 + 1) and not cpu.keeps(CUDA, 1)
