"""`tokenuq prune`: what no configuration refers to, and checkpoints that no training needs."""

import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_pipeline import cli
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.commands import prune
from tokenuq_pipeline.runtime.pruning import removable, remove

pytestmark = pytest.mark.slow


@pytest.fixture
def store(made_study, tmp_path, monkeypatch):
    store = made_study.copy(tmp_path / "toy").store
    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    return store


def configured(config):
    return {name: asset.code_version for name, asset in assets_by_name(config).items()}


def files(store):
    return {path.relative_to(store.home).as_posix() for path in store.home.rglob("*") if path.is_file()}


def test_configured_assets_are_not_removable(store):
    assert removable(store, configured(toy_config())) == []


def test_an_ablation_that_no_study_names_is_removed_with_all_its_files(store):
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


def test_prune_without_a_terminal_only_lists(store, monkeypatch, capsys):
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
