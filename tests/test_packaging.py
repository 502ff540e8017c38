"""The built wheel, used without the checkout; and the files of the project that no other test reads."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.lowest_versions import lowest_versions
from tests.support.paths import ROOT
from tokenuq_ml.config.load import load_config

PACKAGES = ("tokenuq_ml", "tokenuq_pipeline")
PACKAGE_FILES = {
    "tokenuq_ml/py.typed",
    "tokenuq_ml/data/chat_template.jinja",
    "tokenuq_ml/reports/report.css",
    "tokenuq_ml/reports/explorer.js",
    "tokenuq_pipeline/py.typed",
    *(f"tokenuq_ml/advice/measured/{file.name}" for file in ROOT.glob("tokenuq_ml/advice/measured/*.csv")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, so that the checkout gets no build/ folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(built)]
    subprocess.run(command, cwd=source, check=True, timeout=300)
    (path,) = built.glob("tokenuq-*.whl")
    return path


@pytest.fixture(scope="module")
def run_installed(wheel, tmp_path_factory):
    """Return a function that runs a command of the installed wheel in an empty folder.

    The environment holds the wheel and the dependencies of this one. Python does not read the .pth files of a folder
    that a .pth file adds, so this environment's editable install of the checkout is not visible.
    """
    bare = tmp_path_factory.mktemp("bare")
    venv.create(bare, with_pip=False)
    scheme = {"base": str(bare), "platbase": str(bare)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["--python", str(bare / "bin/python"), "install", "--no-deps", "--no-index", "-q", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str, folder: Path) -> str:
        command = [str(bare / "bin" / command[0]), *command[1:]]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_holds_the_packages_their_data_and_the_configuration(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    config = [path for path in (ROOT / "config").rglob("*") if path.suffix in (".yaml", ".jinja")]
    shipped = {f"tokenuq_ml/config/shipped_files/{path.relative_to(ROOT / 'config')}" for path in config}
    assert modules | shipped | PACKAGE_FILES <= names
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_an_installed_command_line_shows_its_help(run_installed, tmp_path):
    assert "usage: tokenuq" in run_installed("tokenuq", "--help", folder=tmp_path)


@pytest.mark.slow
def test_an_installed_package_finds_its_configuration_and_keeps_results_in_the_working_directory(
    run_installed, tmp_path
):
    code = """
import json, os
import tokenuq_ml, tokenuq_pipeline
from tokenuq_ml.config.load import load_config
from tokenuq_ml.tables import connect, scan
from tokenuq_pipeline.definitions import defs
from tokenuq_pipeline.runtime.git import git_state
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home, store_home

config = load_config(*config_folders(os.environ))
try:
    scan("tokens")
except FileNotFoundError as error:
    scanned = str(error)
print(json.dumps({
    "version": tokenuq_ml.__version__,
    "packages": [tokenuq_ml.__file__, tokenuq_pipeline.__file__],
    "folders": [str(folder) for folder in config_folders(os.environ)],
    "studies": sorted(config.studies),
    "chat_template": config.models["gemma_2_2b"].chat_template,
    "assets": len(list(defs.resolve_all_asset_specs())),
    "store": str(store_home()),
    "dagster_home": str(dagster_home()),
    "scanned": scanned,
    "views": connect().execute("SELECT count(*) FROM tokens").fetchone()[0],
    "git": git_state(),
}))
"""
    found = json.loads(run_installed("python", "-c", code, folder=tmp_path).splitlines()[-1])
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert not any(Path(path).is_relative_to(ROOT) for path in [*found["packages"], *found["folders"]])
    assert Path(found["chat_template"]).read_text() == (ROOT / "config/chat_templates/gemma.jinja").read_text()
    assert found["studies"] == sorted(load_config(ROOT / "config").studies)
    assert found["assets"] > 100
    assert found["store"] == str(tmp_path / "store") and found["dagster_home"] == str(tmp_path / ".dagster_home")
    assert str(tmp_path / "store") in found["scanned"] and found["views"] == 0
    assert found["git"] == {}


def output_of_make(*arguments: str) -> str:
    """Return what make prints, also if these tests themselves run under make."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_version_and_the_licence_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_pre_commit_runs_the_commands_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    commands = [
        line
        for line in output_of_make("-n", "lint").splitlines()
        if line.startswith(".venv/bin/") and " -m pip " not in line
    ]
    assert [hook["entry"] for hook in hooks] == commands


def test_make_without_a_target_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    assert [line.split()[1] for line in output_of_make().splitlines()] == phony.split()[1:]


def test_each_part_of_the_installation_says_how_long_it_took(tmp_path):
    """With a pip that only prints: its errors and warnings are passed on, a repeated one once with its number."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(
        "#!/bin/sh\n"
        'echo "$@" | grep -q -- \'-m pip install\' || exec python3 "$@"\n'
        "for n in 1 2 3; do echo \"WARNING: Location 'file:///x/$n' is ignored: it is no folder.\" >&2; done\n"
        "echo 'WARNING: something else' >&2\n"
        "case \"$*\" in *torch==*) exit 0;; *) echo 'ERROR: no such package' >&2; exit 1;; esac\n"
    )
    python.chmod(0o755)
    (tmp_path / ".made").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", f"VENV={tmp_path}", f"{tmp_path}/.quickstart"]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = made.stdout.splitlines()
    assert made.returncode == 2 and said[0] == "installing torch" and re.fullmatch(r"installed torch in \d+ s", said[1])
    assert said[2].startswith("installing tokenuq") and len(said) == 3
    assert (
        made.stderr.count("is ignored") == 2 and made.stderr.count("file:///x/1' is ignored: it is no folder. (3 ") == 2
    )
    assert made.stderr.count("WARNING: something else") == 2 and made.stderr.count("ERROR: no such package") == 1
    assert (tmp_path / ".torch").exists() and not (tmp_path / ".quickstart").exists()


def test_constraints_pin_every_development_tool():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = {re.split(r"[>\[]", name)[0].lower() for name in project["optional-dependencies"]["dev"] if ">" in name}
    assert tools <= pinned


def test_the_pinned_versions_are_within_the_ranges_of_the_package():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement, lowest in zip(map(Requirement, project["dependencies"]), lowest_versions(), strict=True):
        name, version = lowest.split("==")
        assert requirement.name == name and Version(version) <= Version(pinned[name.lower()])
        assert pinned[name.lower()] in requirement.specifier and version in requirement.specifier, name


def test_git_tracks_no_generated_file():
    tracked = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
