"""`tokenuq ablate`: the study that flags make, what it asks, and what it leaves behind."""

import io
import json
import os

import pytest
import yaml

from tests.support.model_folders import folder_model
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.shipped import shipped_config
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import ablate

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a data file and the folder of a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    folder_model(tmp_path / "Tiny-1")
    rows = [{"instruction": f"Add {n} and 1.", "output": f"That is {n + 1}."} for n in range(40)]
    (tmp_path / "My sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    # The command sets it for the commands that it runs.
    os.environ.pop("TOKENUQ_CONFIG", None)


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run, instead of running them; `plan` looks at the configuration first."""
    ran = []

    def run(module, options, *arguments):
        ran.append(arguments)
        load_config(shipped_config(), os.environ["TOKENUQ_CONFIG"])
        return 0, {"of": arguments[0]} if options.json else None

    monkeypatch.setattr(ablate, "_command", run)
    return ran


def asked(*options):
    return cli.main(["ablate", "--model", "Tiny-1", "--data", "My sums.jsonl", *map(str, options)])


def test_flags_make_a_study_that_every_command_knows(place, commands, capsys):
    (place / "test.csv").write_text("question,answer\n1+1?,#### 2\n")
    assert asked("--ood", "test.csv", "--epochs", 2, "--seeds", 3, "--ablation", "mle", "paper_top25", "--yes") == 0
    assert commands == [("plan", "--study", "my_sums_tiny_1"), ("run", "--study", "my_sums_tiny_1")]
    config = load_config(shipped_config(), place / "tokenuq_config")
    study = config.studies["my_sums_tiny_1"]
    assert (study.model, study.dataset, study.ood, study.train.epochs) == ("tiny_1", "my_sums", ("test",), 2)
    assert set(study.ablations) == {f"{name}{seed}" for name in ("mle", "paper_top25") for seed in ("", "_s1", "_s2")}
    assert config.models["tiny_1"].path == str(place / "Tiny-1")
    data = config.datasets["my_sums"]
    assert data.format == "alpaca" and data.sizes == {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert config.datasets["test"].format == "gsm8k" and config.datasets["test"].sizes == {"ood": 1.0}
    printed = capsys.readouterr().out
    shown = printed.partition("studies.yaml\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(shown)["my_sums_tiny_1"]["dataset"] == "my_sums"
    assert f"export TOKENUQ_CONFIG={place}/tokenuq_config" in printed


def test_the_same_command_continues_and_other_flags_need_another_name(place, commands, capsys):
    assert asked("--yes") == 0
    before = (place / "tokenuq_config" / "studies.yaml").read_bytes()
    os.environ.pop("TOKENUQ_CONFIG")
    assert asked("--yes") == 0
    assert (place / "tokenuq_config" / "studies.yaml").read_bytes() == before
    os.environ.pop("TOKENUQ_CONFIG")
    assert asked("--yes", "--epochs", 2) == 2
    assert "give the study another --name" in capsys.readouterr().err
    assert asked("--yes", "--epochs", 2, "--name", "longer") == 0
    assert "longer" in (place / "tokenuq_config" / "studies.yaml").read_text()


def test_a_users_files_keep_their_text(place, commands, monkeypatch):
    own = place / "own"
    own.mkdir()
    (own / "datasets.yaml").write_text("# mine\nother: {format: raw_text, path: a.txt, sizes: {train: 1}}\n")
    monkeypatch.setenv("TOKENUQ_CONFIG", str(own))
    assert asked("--yes") == 0
    text = (own / "datasets.yaml").read_text()
    assert text.startswith("# mine\nother: {format") and "my_sums:" in text and not (place / "tokenuq_config").exists()


def test_nothing_is_left_without_a_terminal_after_no_or_after_a_failed_plan(place, commands, monkeypatch, capsys):
    assert asked() == 2
    assert "add --yes" in capsys.readouterr().err and not (place / "tokenuq_config").exists()
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("n\n"))
    assert asked() == 0
    assert commands == [("plan", "--study", "my_sums_tiny_1")] and not (place / "tokenuq_config").exists()
    assert asked("--ablation", "nobody", "--yes") == 2
    assert "'nobody' is not in ablations.yaml" in capsys.readouterr().err
    assert not (place / "tokenuq_config").exists()


def test_json_is_one_object_with_entries_plan_and_run(place, commands, capsys):
    assert asked("--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert "--json asks nothing; add --yes" in found["error"] and not commands
    assert asked("--json", "--yes", "--ablation", "mle_s0", "--ablation", "paper_top25_s0", "--plain") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["study"] == "my_sums_tiny_1" and found["configuration"] == str(place / "tokenuq_config")
    assert (found["plan"], found["run"]) == ({"of": "plan"}, {"of": "run"}) and "--plain" in commands[-1]
    entries = yaml.safe_load(found["entries"]["studies.yaml"])
    assert entries["my_sums_tiny_1"]["ablations"] == ["mle_s0", "paper_top25_s0"]


def test_splits_that_files_name_are_taken(place, commands):
    folder = place / "Split data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n')
    assert cli.main(["ablate", "--model", "Tiny-1", "--data", str(folder), "--yes"]) == 0
    data = load_config(shipped_config(), place / "tokenuq_config").datasets["split_data"]
    assert data.drawn_from == {"train": "train", "validation": "train", "test": "test"}
    assert data.sizes == {"train": 0.9, "validation": 0.1, "test": 1.0}


def test_two_files_of_one_name_are_refused(place, commands, capsys):
    for folder in ("a", "b"):
        (place / folder).mkdir()
        (place / folder / "far.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n')
    assert asked("--ood", "a/far.jsonl", "--ood", "b/far.jsonl", "--yes") == 2
    assert "b/far.jsonl: another dataset has the name 'far' too" in capsys.readouterr().err and not commands


@pytest.mark.heavy
def test_from_a_data_file_to_an_ablation_table(place, capsys):
    assert asked("--ablation", "mle_s0", "--yes") == 0
    assert "my_sums (test)" in capsys.readouterr().out
    # What `plan` and `run` print themselves.
    assert asked("--ablation", "mle_s0", "--yes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["study"] == found["run"]["study"] == found["study"] and found["run"]["assets"] == []
    assert {row["model"] for row in found["run"]["report"]["models"]} == {"base", "teacher", "mle"}
