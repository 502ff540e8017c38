"""`tokenuq doctor`: each subject says what it found, and names what to do where something is wrong."""

import importlib.metadata
import json
import subprocess

import pytest

from tokenuq_ml.disk_space import Space
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import doctor, doctor_checks
from tokenuq_pipeline.commands.doctor_checks import CHECKS, examine


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    return tmp_path


def of(subject):
    return {finding.state: finding for finding in examine([subject])}


def test_the_parser_knows_the_checks():
    assert tuple(CHECKS) == doctor.SUBJECTS


def test_installed_versions_are_compared_with_what_is_needed(monkeypatch):
    assert set(of("versions")) <= {"ok", "note"}
    installed = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "polars" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = of("versions")["problem"]
    assert "peft is missing" in found.found and "polars is 0.1, needed is " in found.found
    assert "pip install" in found.fix


@pytest.mark.slow
def test_the_device_is_that_of_a_stage():
    from tokenuq_ml.models.numerics import resolve_numerics

    found = of("device")["ok"]
    assert resolve_numerics().reason in found.found and " GB free" in found.found


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch):
    answer = {
        "device": "cpu",
        "name": "this processor",
        "precision": "float32",
        "precision_reason": "x86",
        "threads": 2,
    }
    answer |= {"torch": "2.13", "memory": 4e9, "free": 1e9, "cuda_build": None}

    def run(command, **_):
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(answer), stderr="")

    monkeypatch.setattr(doctor_checks.subprocess, "run", run)
    monkeypatch.setattr(doctor_checks.shutil, "which", lambda name: None)
    assert set(of("device")) == {"ok"}
    monkeypatch.setattr(doctor_checks.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = of("device")["problem"]
    assert "was built without CUDA, sees no GPU" in found.found and found.fix


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_checks, "space", lambda path: Space(tmp_path, tmp_path, 10**12, 4 * 10**9, None))
    found = of("disk")["problem"]
    assert "4.0 GB free" in found.found and "tokenuq prune" in found.fix


def test_the_hub_is_not_asked_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in of("hub")["note"].found


def test_a_damaged_manifest_is_a_problem(place, capsys):
    assert of("store")["ok"].found.startswith("0 assets")
    manifest = place / "store" / ".manifests" / "models" / "tiny.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    assert cli.main(["doctor", "store"]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM" in printed and "models/tiny" in printed and "-> " in printed and "1 problem" in printed


def test_errors_of_the_configuration_are_findings(place, monkeypatch, capsys):
    assert cli.main(["doctor", "configuration", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["state"] == "ok" and " studies (" in found["found"]
    monkeypatch.setenv("TOKENUQ_CONFIG", str(place / "none"))
    assert cli.main(["doctor", "configuration"]) == 1
    assert "no such folder" in capsys.readouterr().out


def test_records_are_opened_and_unknown_subjects_are_named(place, capsys):
    assert of("instance")["ok"].found == f"0 runs in {place / 'dagster'}"
    assert cli.main(["doctor", "disc"]) == 2
    assert "no subject 'disc'; there are versions, device, disk" in capsys.readouterr().err
