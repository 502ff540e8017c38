"""Kernels, passes, the objective and the accelerator benchmark load where little more than torch is installed."""

import pytest

from tests.support.bare_machine import run_on_bare_machine

MODULES = (
    "tokenuq_ml.kernels.training_loss",
    "tokenuq_ml.kernels.scores",
    "tokenuq_ml.models.adapters",
    "tokenuq_ml.models.dropout_passes",
    "tokenuq_ml.models.fast_inference",
    "tokenuq_ml.training.token_objective",
    "benchmarks.accelerator.__main__",
)


@pytest.mark.slow
def test_kernels_passes_and_the_objective_load_without_tables_and_specs():
    program = f"import importlib\nfor name in {MODULES!r}:\n    importlib.import_module(name)\nprint('loaded')"
    assert "loaded" in run_on_bare_machine(program)


@pytest.mark.heavy
def test_the_accelerator_benchmark_runs_on_a_bare_machine(tmp_path):
    arguments = ["--device", "cpu", "--shapes", "tiny", "--steps", "1", "--output", str(tmp_path / "out.json")]
    program = f"from benchmarks.accelerator.__main__ import main\nprint('status', main({arguments!r}))"
    out = run_on_bare_machine(program)
    assert "status 0" in out and "checks passed" in out
    assert "not installed: trl, datasets" in out and "not installed: liger_kernel" in out
