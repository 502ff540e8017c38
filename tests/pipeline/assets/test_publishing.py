"""What another run has made is used, what a person asks for is made again, and who lost the lease publishes nothing."""

import errno
import os
import threading

import dagster as dg
import pytest

from tests.support.owners import elsewhere
from tests.support.store_actions import interrupt
from tests.support.toy_pipeline import FakeStagesInProcess, toy_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets import run_stage
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.run_stage import build_assets
from tokenuq_pipeline.runtime import journal
from tokenuq_pipeline.runtime.instance import ONLY_STALE_TAG
from tokenuq_pipeline.runtime.leases import LeaseRecord
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.slow
MODEL = "models/tiny"


class Launcher(FakeStagesInProcess):
    """Fake stages, with something that happens before each result is published."""

    def run(self, context, request, staging, lease):
        STARTED.append(request.entrypoint)
        for result in super().run(context, request, staging, lease):
            for action in BEFORE_PUBLISH[:1]:
                BEFORE_PUBLISH.remove(action)
                action()
            yield result


STARTED, BEFORE_PUBLISH = [], []


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_stage, "RETRY_DELAY_S", 0)
    STARTED.clear()
    BEFORE_PUBLISH.clear()
    return Store(tmp_path / "store")


MODEL_ASSETS = build_assets(next(group for group in stage_groups(toy_config()) if group.op == "models__tiny"))


def make(store, **tags):
    """Make the model once more, as a person asks for it in the UI, or with tags."""
    return dg.materialize(
        [MODEL_ASSETS], resources={"store": store, "launcher": Launcher()}, tags=tags, raise_on_error=False
    )


def run_of(store):
    return store.read_manifest(MODEL).provenance.run_id


def take_over(store):
    """Another machine takes the lease, as after a suspension of this one, and is killed."""
    latest = store.leases.latest(MODEL)
    assert store.leases.create(MODEL, LeaseRecord(latest.number + 1, 0.0, elsewhere(), "other", (MODEL,)))


def test_of_two_runs_at_once_the_second_waits_and_uses_what_the_first_has_made(store):
    """`tests/field/test_operations_leases.py` does the same with processes and containers."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(make(store, **{ONLY_STALE_TAG: "true"}))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result.success for result in results) and STARTED == ["convert_model"]
    assert all(result.asset_materializations_for_node("models__tiny") for result in results)


def test_a_fresh_asset_is_made_again_where_a_person_asks_for_it(store):
    first, second = make(store), make(store)
    assert first.success and second.success and STARTED == ["convert_model"] * 2
    assert run_of(store) == second.run_id


def test_a_run_that_asks_for_what_is_stale_uses_what_is_fresh_by_then(store):
    first, second = make(store), make(store, **{ONLY_STALE_TAG: "true"})
    assert second.success and STARTED == ["convert_model"] and run_of(store) == first.run_id
    (event,) = second.asset_materializations_for_node("models__tiny")
    assert event.tags["dagster/data_version"] == store.data_version(MODEL)


def test_a_run_uses_what_was_made_since_it_was_created(store):
    make(store)
    path = store.home / ".manifests" / f"{MODEL}.json"
    # As if another run had finished while this one waited in the queue.
    os.utime(path, (path.stat().st_mtime + 3600,) * 2)
    assert make(store).success and STARTED == ["convert_model"]


def test_a_stage_first_completes_what_the_last_holder_of_its_lease_was_publishing(store):
    first = make(store)
    interrupt(store, MODEL)
    assert store.read_manifest(MODEL) is None
    second = make(store, **{ONLY_STALE_TAG: "true"})
    assert second.success and STARTED == ["convert_model"] and run_of(store) == first.run_id


def test_a_step_that_fails_while_it_publishes_leaves_a_complete_version(store, monkeypatch):
    """It is completed at once: nothing waits for the next start."""
    first = make(store)

    def refuse(*_):
        monkeypatch.undo()
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(journal, "move_into_place", refuse)
    second = make(store)
    assert first.success and not second.success and run_of(store) == second.run_id
    assert store.problems(MODEL) == [] and not any(store.home.glob(".publishing/*"))


@pytest.mark.parametrize("damage", ["code_version", "input_data_versions", "missing file"])
def test_what_is_stale_or_incomplete_is_made(store, damage):
    make(store)
    manifest = store.read_manifest(MODEL)
    if damage == "missing file":
        store.path(manifest.files[0].path).unlink()
    else:
        value = {"code_version": "0-other", "input_data_versions": {"files/x": "y"}}[damage]
        manifest.model_copy(update={damage: value}).write(store.home / ".manifests" / f"{MODEL}.json")
    second = make(store, **{ONLY_STALE_TAG: "true"})
    assert second.success and run_of(store) == second.run_id


def test_who_has_lost_the_lease_publishes_nothing_and_waits_for_the_other(store, monkeypatch):
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "0.2")
    make(store)
    before, seen = store.read_manifest(MODEL), []
    BEFORE_PUBLISH.append(lambda: take_over(store))
    BEFORE_PUBLISH.append(lambda: seen.append(store.read_manifest(MODEL)))
    second = make(store)
    assert second.success and seen == [before] and STARTED == ["convert_model"] * 3
    (retry,) = [event for event in second.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    error = retry.event_specific_data.error
    assert "process 7 on another-host has taken over" in error.cause.message
    assert run_of(store) == second.run_id and store.is_complete(MODEL)


def test_a_linked_folder_is_refused_before_anything_is_computed(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    store.home.mkdir()
    (store.home / "models").symlink_to(tmp_path / "elsewhere")
    result = make(store)
    failure = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert not result.success and STARTED == []
    assert failure.user_failure_data.description.startswith(f"{store.home / 'models'} is a symbolic link: results are")


def test_a_place_on_another_file_system_is_refused(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with store.staging() as staging:
        store.check_publishable(["models/tiny"], staging)
        assert not list((store.home / "models").iterdir())
        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(InputError, match=r"models is on another file system than .*\.staging: results are moved"):
            store.check_publishable(["models/tiny"], staging)
