"""`tokenuq verify`: files against the hashes in their manifests."""

import json

import pytest

from tokenuq_pipeline import cli

pytestmark = pytest.mark.slow


@pytest.fixture
def store(made_study, tmp_path, monkeypatch):
    store = made_study.copy(tmp_path / "toy").store
    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    return store


def test_an_unchanged_store_matches_its_hashes(store, capsys):
    assert cli.main(["verify"]) == 0
    assert "of 17 assets match their recorded hashes" in capsys.readouterr().out


def test_an_altered_a_missing_and_an_extra_file_are_named(store, capsys):
    folder = store.path("student/study=study/ablation=top/adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"x" * weights.stat().st_size)
    store.path("models/tiny/content").unlink()
    (folder / "more").touch()
    assert store.is_complete("study/top/student")  # by names and sizes nothing is wrong
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    adapter = "study/top/student: student/study=study/ablation=top/adapter"
    assert f"{adapter}/adapter_model.safetensors: its SHA-256 begins with" in out
    assert f"{adapter}/more: does not belong to the asset" in out
    assert "models/tiny: models/tiny/content is missing" in out and "2 of 17 assets do not match" in out
    assert store.is_complete("study/top/student")
    assert cli.main(["verify", "--forget"]) == 1
    assert not store.is_complete("study/top/student") and store.is_complete("study/mle/student")


def test_json_says_the_same(store, capsys):
    assert cli.main(["verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["store"] == str(store.home) and found["assets"] == 17 and found["files"] > 17
    assert not found["damaged"] and not found["other_files"] and "match their recorded hashes" in found["summary"]
    store.path("models/tiny/content").unlink()
    assert cli.main(["verify", "--forget", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["damaged"] == {"models/tiny": ["models/tiny/content is missing"]}
    assert found["repaired"].keys() == {"models/tiny"} and not store.is_complete("models/tiny")


def test_an_unknown_study_is_a_one_line_error(store, capsys):
    assert cli.main(["verify", "--study", "nope"]) == 2
    assert "studies.yaml: no study 'nope'" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(store, capsys):
    path = store.home / ".manifests" / "study" / "top" / "student.json"
    path.write_text(path.read_text()[:100])
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert f"study/top/student: has no readable manifest: {path}: is not JSON" in out
    assert "1 of 17 assets do not match" in out
