"""`tokenuq verify` and `tokenuq prune`: files against their hashes, and what no configuration names any more."""

import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_pipeline import cli
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.commands import prune
from tokenuq_pipeline.runtime.pruning import removable, remove


@pytest.fixture
def store(made_study, tmp_path, monkeypatch):
    store = made_study.copy(tmp_path / "toy").store
    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    return store


def configured(config):
    return {name: asset.code_version for name, asset in assets_by_name(config).items()}


def files(store):
    return {path.relative_to(store.home).as_posix() for path in store.home.rglob("*") if path.is_file()}


def test_a_store_as_it_was_written_matches(store, capsys):
    assert cli.main(["verify"]) == 0
    assert "of 17 assets match their recorded hashes" in capsys.readouterr().out


def test_an_altered_a_missing_and_an_extra_file_are_named(store, capsys):
    folder = store.path("student/study=study/ablation=top/adapter")
    (folder / "content").write_bytes(b"x" * (folder / "content").stat().st_size)
    store.path("models/tiny/content").unlink()
    (folder / "more").touch()
    assert store.is_complete("study/top/student")  # by names and sizes nothing is wrong
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "study/top/student: student/study=study/ablation=top/adapter/content: its SHA-256 begins with" in out
    assert "study/top/student: student/study=study/ablation=top/adapter/more: does not belong to the asset" in out
    assert "models/tiny: models/tiny/content: is missing" in out and "2 of 17 assets do not match" in out
    assert store.is_complete("study/top/student")
    assert cli.main(["verify", "--forget"]) == 1
    assert not store.is_complete("study/top/student") and store.is_complete("study/mle/student")


def test_an_unknown_study_is_one_sentence(store, capsys):
    assert cli.main(["verify", "--study", "nope"]) == 2
    assert "studies.yaml: no study 'nope'" in capsys.readouterr().err


def test_nothing_is_removable_of_what_is_configured(store):
    assert removable(store, configured(toy_config())) == []


def test_an_ablation_that_was_taken_out_is_listed_and_goes_with_all_its_files(store):
    before, without = files(store), configured(toy_config(ablations=["mle"]))
    found = removable(store, without)
    stages = {f"study/top/{stage}" for stage in ("student", "evaluation", "curriculum")}
    assert {item.name for item in found} == stages | {".checkpoints/study/top/student"}
    assert all(item.bytes > 0 for item in found if item.asset)
    for item in found:
        remove(store, item)
    gone = before - files(store)
    assert gone and all("ablation=top" in path or "study/top" in path for path in gone)
    assert not [path for path in files(store) if "ablation=top" in path or "study/top/" in path]
    assert not store.path("student/study=study/ablation=top").exists() and store.is_complete("study/mle/student")
    assert removable(store, without) == []


def test_checkpoints_of_earlier_specs_go_and_those_of_a_training_under_way_stay(store):
    old = store.work_dir("study/top/student") / "0123" / "checkpoint-7"
    old.mkdir(parents=True)
    (old / "weights").write_text("x")
    names = configured(toy_config())
    assert [item.name for item in removable(store, names)] == [".checkpoints/study/top/student"]
    edited = configured(toy_config(quantile=0.5))
    assert removable(store, edited) == []  # the training of the edited spec is still to come, and may be this one
    (item,) = removable(store, names)
    remove(store, item)
    assert not old.exists()


def test_without_a_terminal_it_only_lists(store, monkeypatch, capsys):
    """What is configured there is the checkout's own configuration, so that all of the toy is to go."""
    before = files(store)
    assert cli.main(["prune"]) == 0
    out = capsys.readouterr().out
    assert "study/top/student" in out and "nothing was deleted; give --yes" in out and files(store) == before
    assert cli.main(["prune", "--study", "other"]) == 0 and "nothing to delete" in capsys.readouterr().out
    monkeypatch.setattr(prune.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert cli.main(["prune"]) == 0 and files(store) == before
    assert cli.main(["prune", "--yes"]) == 0
    assert not [path for path in files(store) if not path.startswith(".")] and store.assets() == []
