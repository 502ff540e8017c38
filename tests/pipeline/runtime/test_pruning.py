"""What is deleted is the store's own, and unused."""

import contextlib
import os

import pytest

from tests.support.plain_store import put, tree
from tests.support.prunable_store import CONFIGURED, OLD, checkpoint, files, forge, names, prunable_store, remove_all
from tokenuq_pipeline.runtime.folder_lock import lock_folder
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.pruning import NotRemovable, foreign, removable, remove
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.trash import Trash


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return prunable_store(tmp_path)


@pytest.mark.parametrize(
    "outputs",
    [
        {"x": "../outside"},
        {"x": "/"},
        {"x": ""},
        {"x": "."},
        {"x": "student"},
        {"adapter": "student/study=s/ablation=a/adapter"},
        {"training_log": "training_log/study=s/ablation=a"},
        {"token_losses": "token_losses/study=s"},
        {"x": ".manifests"},
        {"x": ".checkpoints"},
    ],
)
def test_a_manifest_s_text_does_not_decide_what_is_deleted(store, tmp_path, outputs):
    """The last two names are those of rows that belong to `reference_evaluation` and `baseline_teacher`."""
    put(store, "s/baseline_teacher")
    configured = {**CONFIGURED, "s/baseline_teacher": "1-s"}
    kept = {path: text for path, text in files(store).items() if "old" not in path}
    for asset in ("old/evil", "s/evil", "s/old/student", "s/base/evaluation", "s/teacher/student"):
        forge(store, asset, outputs=outputs, files=[])
    for item in removable(store, configured):
        remove(store, item, now=True)
    assert files(store) == kept
    assert (tmp_path / "outside" / "precious").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_a_damaged_manifest_of_an_unused_asset_goes_with_the_asset_s_own_folders(store, text):
    (store.home / ".manifests" / f"{OLD}.json").write_text(text)
    (item,) = removable(store, CONFIGURED)
    assert item.reason.endswith("; its manifest is damaged, and only folders of its name go")
    remove_all(store)
    assert names(store) == [] and not [path for path in files(store) if "old" in path]


def test_a_manifest_that_names_no_asset_is_reported_and_stays(store):
    path = store.home / ".manifests" / "Not an asset.json"
    path.write_text("{}")
    item = next(item for item in removable(store, CONFIGURED) if item.name == "Not an asset")
    assert "is not the name of an asset" in item.kept_because and str(path) in item.kept_because
    with pytest.raises(NotRemovable, match="is not the name of an asset"):
        remove(store, item)
    assert path.exists()


@pytest.mark.parametrize(
    "linked",
    [
        "student",
        "student/study=s",
        "student/study=s/ablation=old",
        "student/study=s/ablation=old/adapter",
        "training_log/study=s/ablation=old",
        ".manifests/s/old",
        ".trash",
        ".checkpoints",
    ],
)
def test_nothing_is_deleted_through_a_symbolic_link(store, tmp_path, linked):
    checkpoint(store, OLD)
    aside = tmp_path / "outside" / "aside"
    if linked == ".trash":
        aside.mkdir()
    else:
        os.rename(store.path(linked), aside)
    store.path(linked).symlink_to(aside)
    before = tree(tmp_path / "outside")
    for now in (False, True):
        for item in removable(store, CONFIGURED):
            with contextlib.suppress(NotRemovable):
                remove(store, item, now)
        Trash(store.home).empty()
        assert tree(tmp_path / "outside") == before


def test_an_asset_behind_a_symbolic_link_is_listed_with_the_reason_why_it_stays(store):
    link = store.path("student/study=s")
    os.rename(link, store.home / "aside")
    link.symlink_to(store.home / "aside")
    (item,) = removable(store, CONFIGURED)
    assert item.kept_because.startswith(f"{link} is a symbolic link: what it points to is not the store's own")
    with pytest.raises(NotRemovable, match="is a symbolic link"):
        remove(store, item)


def test_a_link_inside_an_asset_s_folder_is_deleted_and_what_it_points_to_stays(store, tmp_path):
    store.path("student/study=s/ablation=old/adapter/more").symlink_to(tmp_path / "outside")
    remove_all(store)
    assert names(store) == []
    Trash(store.home).empty()
    assert Trash(store.home).all() == [] and (tmp_path / "outside" / "precious").exists()


@pytest.mark.parametrize("asset", [OLD, "s/old/evaluation", "s/old/curriculum"])
def test_an_asset_that_a_run_works_on_stays_with_its_checkpoints(store, asset):
    checkpoint(store, OLD)
    put(store, "s/old/evaluation")
    before = files(store)
    with Leases(store.home).hold(OLD, print, makes=[OLD, asset]):
        items = {item.name: item for item in removable(store, CONFIGURED)}
        for name in (asset, f".checkpoints/{OLD}"):
            if name in items:
                assert "a run works on it: process" in items[name].kept_because
                with pytest.raises(NotRemovable, match="a run works on it"):
                    remove(store, items[name])
    assert files(store) == before
    remove_all(store)
    assert not [path for path in files(store) if "old" in path]


def test_a_run_that_starts_after_the_listing_keeps_its_asset(store):
    (item,) = removable(store, CONFIGURED)
    with Leases(store.home).hold(OLD, print), pytest.raises(NotRemovable, match="a run works on it"):
        remove(store, item)
    put(store, OLD, content="made again")
    with pytest.raises(NotRemovable, match="has changed since it was listed"):
        remove(store, item)
    assert store.is_complete(OLD)


def test_the_lock_that_a_child_inherits_protects_its_checkpoints(store):
    """It outlives the run, to write its last checkpoint; and runs of earlier versions have no lease."""
    folder = checkpoint(store, OLD).parents[2]
    with lock_folder(folder, print):
        assert [item.kept_because for item in removable(store, CONFIGURED)] == ["a run works on it"] * 2
    assert [item.kept_because for item in removable(store, CONFIGURED)] == [None] * 2


def test_checkpoints_of_earlier_specs_go_unless_a_forced_rerun_uses_them(store):
    with lock_folder(store.work_dir("s/a/student"), print):
        pass
    weights = checkpoint(store, "s/a/student")
    item = next(item for item in removable(store, CONFIGURED) if item.asset == "s/a/student")
    assert item.reason == "checkpoints of earlier specs; the asset is complete"
    with Leases(store.home).hold("s/a/student", print), pytest.raises(NotRemovable):
        remove(store, item)
    later = checkpoint(store, "s/a/student", "4567/checkpoint-1/weights")  # of a training that was stopped meanwhile
    remove(store, item)
    assert later.exists() and not weights.exists() and Trash(store.home).bytes == len("weights")
    (later.parents[1] / "checkpoint-2").mkdir()
    item = next(item for item in removable(store, CONFIGURED) if item.asset == "s/a/student")
    (later.parents[1] / "checkpoint-3").mkdir()
    with pytest.raises(NotRemovable, match="has changed"):
        remove(store, item)
    remove(store, next(item for item in removable(store, CONFIGURED) if item.asset == "s/a/student"))
    assert os.listdir(store.work_dir("s/a/student")) == [".lock"]


def test_finished_parts_of_a_stopped_scoring_stay_until_its_asset_is_complete(store):
    """They are among the checkpoints of another asset, the first one of their child process, which is complete."""
    configured = {**CONFIGURED, "s/token_uncertainty": "1-s", "s/a/evaluation": "1-s"}
    folders = {
        "s/token_losses": ("token_uncertainty-0123", "reference_evaluation-0123", "token_losses-0123"),
        "s/a/student": ("evaluation-0123", "answers", "0123"),
    }
    for worker, names_of in folders.items():
        for name in names_of:
            checkpoint(store, worker, f"{name}/parts/x")

    def listed():
        items = removable(store, configured)
        return {place for item in items if item.name.startswith(".checkpoints") for place in item.places}

    every = {f".checkpoints/{worker}/{name}" for worker, all_of in folders.items() for name in all_of}
    stopped = ("s/token_losses/token_uncertainty-0123", "s/a/student/evaluation-0123", "s/a/student/answers")
    assert listed() == every - {f".checkpoints/{name}" for name in stopped}
    put(store, "s/token_uncertainty")
    put(store, "s/a/evaluation")
    assert listed() == every


def test_a_lock_file_inside_or_around_a_configured_asset_s_checkpoints_is_no_asset(store):
    checkpoint(store, "s/token_losses")
    (store.home / CHECKPOINT_OF_TOKEN_LOSSES / "0123" / ".lock").touch()
    (store.home / ".checkpoints" / "s" / ".lock").touch()
    checkpoint(store, "s/a/student")
    (store.home / ".checkpoints" / "s" / "a" / ".lock").touch()
    (store.home / ".checkpoints" / ".lock").touch()
    found = [item for item in removable(store, CONFIGURED) if item.name.startswith(".checkpoints")]
    assert {item.reason for item in found} <= {"checkpoints of earlier specs; the asset is complete"}


CHECKPOINT_OF_TOKEN_LOSSES = ".checkpoints/s/token_losses"


@pytest.mark.parametrize(
    "asset, reason",
    [
        ("other/token_losses", "the configuration has no study other"),
        ("other/a/student", "the configuration has no study other"),
        ("s/old/evaluation", "the study s has no ablation old"),
        ("s/a/curriculum", "no stage of the configuration makes it"),
        ("s/teacher_hidden", "no stage of the configuration makes it"),
        ("datasets/other", "the configuration has no dataset other"),
        ("models/m", "the configuration has no model m"),
    ],
)
def test_the_reason_says_what_the_configuration_lacks(store, asset, reason):
    put(store, asset)
    assert {item.name: item.reason for item in removable(store, CONFIGURED)}[asset] == reason


def test_a_configuration_that_knows_no_study_of_the_store_is_refused(store, tmp_path):
    assert foreign(store, CONFIGURED) is None
    elsewhere = {"quickstart/token_losses": "1", "datasets/d": "1"}
    assert foreign(store, elsewhere) == f"{store.home}: the configuration knows no study of this store (s)"
    put(store, "quickstart/token_losses")
    assert foreign(store, elsewhere) is None
    empty = Store(tmp_path / "empty")
    assert foreign(empty, elsewhere) is None
    put(empty, "models/m")
    assert foreign(empty, elsewhere) == f"{empty.home}: the configuration knows nothing of what is in this store"
    assert foreign(empty, {"models/m": "1"}) is None


def test_a_store_that_holds_nothing_but_checkpoints_of_another_study_is_foreign_too(tmp_path):
    store = Store(tmp_path)
    with lock_folder(store.work_dir("mine/baseline_teacher"), print):
        pass
    assert "knows no study of this store (mine)" in foreign(store, CONFIGURED)
