"""What was deleted can be had back for a week, complete or not at all."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.manifests import edit
from tests.support.plain_store import put, tree
from tests.support.prunable_store import CONFIGURED, OLD, files, names, prunable_store, remove_all
from tokenuq_ml.tables.partitions import complete_files
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.pruning import NotRemovable, removable, remove
from tokenuq_pipeline.runtime.restoring import NotRestorable, restorable, restore
from tokenuq_pipeline.runtime.store_layout import places_of
from tokenuq_pipeline.runtime.trash import Trash


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return prunable_store(tmp_path)


def test_an_asset_goes_to_the_trash_with_all_its_folders_and_comes_back_byte_for_byte(store):
    before = tree(store.home)
    (item,) = removable(store, CONFIGURED)
    assert item.name == OLD and item.reason == "the study s has no ablation old" and item.kept_because is None
    assert item.sizes == {place: len(OLD) for place in places_of(OLD).values()}
    remove(store, item)
    gone = before.keys() - files(store).keys()
    assert gone == {*(f"{place}/file" for place in places_of(OLD).values()), f".manifests/{OLD}.json"}
    assert not store.path("student/study=s/ablation=old").exists() and names(store) == []
    assert store.read_manifest(OLD) is None and OLD not in store.assets()
    (entry,) = Trash(store.home).entries()
    assert tree(entry.path) == {path: before[path] for path in gone}
    assert restorable(store, "s") == restorable(store, OLD) == {OLD: entry}
    assert restorable(store, "s/ol") == restorable(store, "other") == {}
    restore(store, OLD, entry)
    assert files(store) == before and store.is_complete(OLD) and Trash(store.home).entries() == []


def test_with_now_nothing_is_kept(store):
    remove_all(store, now=True)
    assert (
        Trash(store.home).all() == [] and names(store) == [] and not store.path("student/study=s/ablation=old").exists()
    )


def test_the_trash_is_emptied_after_a_week_and_only_of_what_was_put_there(store):
    remove_all(store)
    trash = Trash(store.home)
    (entry,) = trash.entries()
    foreign_file, foreign_folder = trash.path / "mine.txt", trash.path / "20200101-notes"
    foreign_file.write_text("x")
    foreign_folder.mkdir()
    (trash.path / "99999999T999999.999999Z-01234567").mkdir()
    assert trash.entries() == [entry] and trash.empty_old() == []
    almost, over = (datetime.now(UTC) - timedelta(days=7, seconds=seconds) for seconds in (-60, 60))
    for moment, left in ((almost, 1), (over, 0)):
        name = f"{moment:%Y%m%dT%H%M%S.%fZ}-{entry.path.name[-8:]}"
        os.rename(next(iter(trash.entries())).path, trash.path / name)
        trash.empty_old()
        assert len(trash.entries()) == left
    assert foreign_file.exists() and foreign_folder.exists()


def test_a_run_empties_the_trash_of_what_is_older_than_a_week(store):
    remove_all(store)
    (entry,) = Trash(store.home).entries()
    with store.staging():
        assert Trash(store.home).entries() == [entry]
    os.rename(entry.path, entry.path.with_name(f"20200101T000000.000000Z-{entry.path.name[-8:]}"))
    with store.staging():
        assert Trash(store.home).all() == []


def test_a_clock_that_was_ahead_does_not_keep_an_entry_for_longer(store):
    remove_all(store)
    (entry,) = Trash(store.home).entries()
    path = entry.path.rename(entry.path.with_name(f"20990101T000000.000000Z-{entry.path.name[-8:]}"))
    os.utime(path, (0, 0))
    assert len(Trash(store.home).empty_old()) == 1


def test_an_entry_that_is_half_deleted_is_not_restored_and_goes_next_time(store):
    remove_all(store)
    trash = Trash(store.home)
    (entry,) = trash.entries()
    os.rename(entry.path, f"{entry.path}.deleting")
    assert trash.entries() == [] and restorable(store, OLD) == {} and trash.bytes > 0
    assert len(trash.empty_old()) == 1 and trash.bytes == 0


def test_readers_never_see_the_trash(store):
    before = complete_files(store.home)
    remove_all(store)
    after = complete_files(store.home)
    assert not [path for paths in after.values() for path in paths if ".trash" in str(path)]
    assert {path for paths in before.values() for path in paths} >= {path for paths in after.values() for path in paths}
    assert OLD not in store.assets()


def test_a_restore_gives_way_to_what_was_made_since(store):
    remove_all(store)
    (entry,) = Trash(store.home).entries()
    put(store, OLD, content="newer")
    with pytest.raises(NotRestorable, match="is in the store"):
        restore(store, OLD, entry)
    assert store.read_manifest(OLD).data_version == "newer" and store.is_complete(OLD)
    remove_all(store)
    restore(store, OLD, restorable(store, OLD)[OLD])  # the later of the two
    assert store.read_manifest(OLD).data_version == "newer" and store.is_complete(OLD)
    assert restorable(store, OLD) == {OLD: entry}


def test_what_a_crash_left_in_its_place_makes_room_for_a_restored_asset(store):
    remove_all(store)
    place = store.path("student/study=s/ablation=old/adapter")
    place.mkdir(parents=True)
    (place / "half").write_text("x")
    restore(store, OLD, restorable(store, OLD)[OLD])
    assert store.is_complete(OLD) and os.listdir(place) == ["file"] and store.problems(OLD) == []


def test_an_asset_is_not_restored_from_folders_of_two_versions(store):
    """As after a restore that a crash cut short, a new version, and a file that was altered in the trash."""
    remove_all(store)
    entry = restorable(store, OLD)[OLD]
    place = "student/study=s/ablation=old/adapter"
    shutil.rmtree(entry.path / place)
    put(store, OLD, content=OLD[::-1])
    store.forget(OLD)
    with pytest.raises(NotRestorable, match="cannot be restored"):
        restore(store, OLD, entry)
    assert not store.is_complete(OLD)
    (store.path(place) / "file").write_text(OLD)
    restore(store, OLD, entry)
    assert store.is_complete(OLD) and store.problems(OLD) == []


def test_a_run_that_works_on_an_asset_keeps_it_from_being_restored(store):
    remove_all(store)
    entry = restorable(store, OLD)[OLD]
    with Leases(store.home).hold(OLD, print), pytest.raises(NotRestorable, match="a run works on it"):
        restore(store, OLD, entry)


def test_a_forged_entry_of_the_trash_is_not_restored(store, tmp_path):
    remove_all(store)
    entry = restorable(store, OLD)[OLD]
    path = entry.path / ".manifests" / f"{OLD}.json"
    content = json.loads(path.read_text())
    edit(path, outputs={"x": "../outside"})
    with pytest.raises(NotRestorable, match="has no output 'x'"):
        restore(store, OLD, entry)
    path.write_text(json.dumps(content))
    os.rename(entry.path / "student", tmp_path / "moved")
    (entry.path / "student").symlink_to(tmp_path / "moved")
    with pytest.raises(NotRestorable, match="is a symbolic link"):
        restore(store, OLD, entry)


def test_where_the_trash_cannot_take_it_only_now_deletes(store, monkeypatch):
    """The folder is on another file system than `.trash`, or the disk takes no further folder."""
    (item,) = removable(store, CONFIGURED)

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("tokenuq_pipeline.runtime.trash.move", refuse)
    with pytest.raises(NotRemovable, match="Invalid cross-device link; `--now` deletes it without the trash"):
        remove(store, item)
    assert store.is_complete(OLD)
    remove(store, item, now=True)
    assert names(store) == []
