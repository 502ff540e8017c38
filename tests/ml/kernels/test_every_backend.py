"""The tests of the kernels pass on every backend, and the Triton kernels compile for the cards."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
OF_BACKENDS = ("test_backend.py", "test_launches.py", "test_token_groups.py", Path(__file__).name)
"""Tests that choose backends themselves."""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (286 MB): pip install triton==3.6.0"
)


def run(*command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def kernel_tests(*options, **variables):
    ignored = [f"--ignore={HERE / name}" for name in OF_BACKENDS]
    return run("pytest", "-q", "-x", "-p", "no:cacheprovider", *ignored, *options, str(HERE), **variables)


@pytest.mark.heavy
def test_the_kernels_pass_their_tests_by_large_chunks():
    assert " passed" in kernel_tests(TOKENUQ_KERNELS="torch")


@pytest.mark.heavy
@needs_triton
def test_the_kernels_pass_their_tests_in_triton_s_interpreter():
    """Without the two divergences that are not fused, which the test above covers."""
    only = ("-k", "not reverse_kl and not jsd")
    assert " passed" in kernel_tests(*only, TOKENUQ_KERNELS="triton", TRITON_INTERPRET="1")


@pytest.mark.heavy
@needs_triton
def test_the_triton_kernels_compile_for_the_cards(tmp_path):
    """For an A100, a 4090 and an H100; the interpreter takes Python that the compiler does not."""
    lines = run(
        "tests.support.compiled_kernels", "80", "89", "90", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0"
    ).splitlines()
    assert len(lines) == 3 * 10 * 2 and all(int(line.split()[-1]) > 1000 for line in lines)
