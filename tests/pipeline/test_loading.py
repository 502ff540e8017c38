"""Loading the definitions: fast, without torch, accepted by Dagster, and with clear errors."""

import ast
import os
import subprocess
import sys

import pytest
import yaml

from tests.support.paths import ROOT


@pytest.mark.slow
def test_loading_imports_nothing_heavy():
    code = (
        "import sys, tokenuq_pipeline.cli, tokenuq_pipeline.automation.study_runner, tokenuq_pipeline.definitions; "
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'peft', 'lm_eval') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert process.stdout.strip() == "[]", process.stderr


def loaded_by(arguments, store):
    """Return the packages that a command has loaded when it ends."""
    code = (
        "import atexit, sys\n"
        "from tokenuq_pipeline.cli import main\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        f"main({arguments!r})"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "TOKENUQ_HOME": str(store), "DAGSTER_HOME": str(store / "dagster_home")},
    )
    assert process.stdout and "Traceback" not in process.stderr, process.stderr
    return process.stdout, set(process.stderr.split())


TABLES = {"numpy", "pyarrow", "polars", "duckdb"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, shown",
    [(["--help"], "curate"), (["query", "--help"], "--output"), (["query", "SELECT 41 + 1 AS n"], "42")],
    ids=["help", "query_help", "query"],
)
def test_a_command_that_opens_no_dagster_loads_little(tmp_path, arguments, shown):
    out, loaded = loaded_by(arguments, tmp_path)
    assert shown in out and not loaded & {"dagster", "sqlalchemy", "pydantic", "yaml", *TABLES}


@pytest.mark.slow
def test_status_reads_records_and_manifests_but_no_tables(tmp_path):
    (tmp_path / "selections" / "study=quickstart").mkdir(parents=True)
    out, loaded = loaded_by(["status"], tmp_path)
    # What a study was made of is compared with its definitions and with Dagster's records.
    assert "quickstart" in out and "incomplete" in out and {"dagster", "sqlalchemy"} <= loaded
    assert not loaded & {"torch", "transformers", "matplotlib", "dagster_webserver", "starlette", *TABLES}


@pytest.mark.heavy
def test_twenty_studies_of_forty_ablations_load_without_torch(tmp_path):
    study = {"model": "smollm2_135m", "dataset": "gsm_symbolic", "ood": ["alpaca_eval_gpt4"], "ablations": ["sweep"]}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({f"study{number}": study for number in range(20)}))
    quantiles = [round(0.02 * number, 2) for number in range(1, 41)]
    sweep = {"select": {"by": "loss", "quantile": quantiles}, "rest": {"distill": {}}}
    (tmp_path / "ablations.yaml").write_text(yaml.safe_dump({"sweep": sweep}))
    code = (
        "import sys, tokenuq_pipeline.definitions as d; "
        "keys = d.defs.resolve_asset_graph().get_all_asset_keys(); "
        "print(sum(key.path[-1] == 'student' and key.path[0][:5] == 'study' for key in keys), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "TOKENUQ_CONFIG": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment
    )
    assert process.stdout.strip() == "800 False", process.stderr


@pytest.mark.slow
def test_dagster_validates_the_shipped_definitions(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
    )
    assert process.returncode == 0, process.stderr
    assert "Validation successful for code location tokenuq" in process.stdout + process.stderr


@pytest.mark.slow
def test_a_broken_configuration_raises_one_error_with_file_and_key(tmp_path):
    (tmp_path / "ablations.yaml").write_text("odd:\n  select: {by: luck}\n")
    process = subprocess.run(
        [sys.executable, "-c", "import tokenuq_pipeline.definitions"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TOKENUQ_CONFIG": str(tmp_path)},
    )
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("tokenuq_ml.errors.InputError:") and "odd.select.by: unknown selector 'luck'" in last


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_dagster_stays_out_of_the_library_and_tensors_out_of_the_pipeline():
    for path in (ROOT / "tokenuq_ml").rglob("*.py"):
        found = set(imports(path))
        assert "dagster" not in found and "tokenuq_pipeline" not in found, path
        assert "dagster_pipes" not in found or path.name == "runner.py", path
    for path in (ROOT / "tokenuq_pipeline").rglob("*.py"):
        assert not set(imports(path)) & {"torch", "transformers", "peft", "safetensors"}, path


def test_project_files_have_the_settings_that_dagster_needs():
    text = (ROOT / "pyproject.toml").read_text()
    assert "[tool.dg" not in text and "[tool.dagster" not in text
    workspace = (ROOT / "workspace.yaml").read_text()
    assert "module_name: tokenuq_pipeline.definitions" in workspace and "working_directory: ." in workspace
    makefile = (ROOT / "Makefile").read_text()
    assert "tokenuq ui --port $(PORT) --with-parent" in makefile and "DAGSTER_HOME ?=" in makefile
    # Dagster's own server has no guard.
    assert "dagster dev" not in makefile and "dagster-webserver" not in makefile
    for path in (ROOT / "tokenuq_pipeline").rglob("*.py"):
        source = path.read_text()
        assert not ("from __future__ import annotations" in source and ("Config" in source or "Resource" in source))


@pytest.mark.slow
def test_a_command_that_opens_duckdb_ends_without_a_word_of_it(tmp_path):
    """Its objects must be collected at the exit, or it prints a page on leaks."""
    command = [sys.executable, "-m", "tokenuq_pipeline.cli", "query", "--schema"]
    environment = {**os.environ, "TOKENUQ_HOME": str(tmp_path)}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert process.returncode == 0 and process.stdout and process.stderr == ""
