"""Threads of stages spin for a short time, unless a person has chosen."""

import ctypes
import os
import subprocess
import sys

import pytest

from tokenuq_ml.stages.thread_waits import CHOSEN, SPIN, thread_waits


def test_the_default_is_a_short_spin_and_a_choice_is_kept():
    assert list(thread_waits({"PATH": "p"})) == [SPIN]
    for name in CHOSEN:
        assert thread_waits({name: "7", "PATH": "p"}) == {name: "7"}


def test_the_library_reads_the_variable():
    """GNU's OpenMP shows what it has read, if asked to."""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("this system has no libgomp to load without PyTorch")
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    environment = {**kept, **thread_waits({}), "OMP_DISPLAY_ENV": "VERBOSE"}
    program = "import ctypes; ctypes.CDLL('libgomp.so.1')"
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stderr
    assert f"{SPIN} = '{thread_waits({})[SPIN]}'" in shown
