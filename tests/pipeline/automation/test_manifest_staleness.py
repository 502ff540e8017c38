"""Staleness by manifests alone: what an asset was made from, compared with what the store holds now."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.manifests import complete
from tests.support.toy_pipeline import STUDY, config_with
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.automation.manifest_staleness import ManifestReader

pytestmark = pytest.mark.slow
HOUR = timedelta(hours=1)


@pytest.fixture
def toy(made_study_with_file, tmp_path):
    return made_study_with_file.copy(tmp_path / "toy")


@pytest.fixture
def assets(made_study_with_file):
    return assets_by_name(config_with(made_study_with_file.folder.parent))


def stale(toy, assets):
    reader = ManifestReader(toy.store)
    return {name: reason for name, asset in assets.items() if (reason := reader.why_stale(asset)) is not None}


def change(toy, name, **parts):
    manifest = toy.store.read_manifest(name)
    complete(toy.store, manifest.model_copy(update=parts))
    return manifest


def test_a_store_that_was_just_made_is_fresh(toy, assets):
    assert stale(toy, assets) == {}


def test_a_change_that_no_edge_shows_makes_every_reader_stale(toy, assets):
    """Such as of the part of a chat template that only generated answers see."""
    change(toy, "models/tiny", data_version="other")
    readers = {name for name, asset in assets.items() if ("models", "tiny") in asset.reads}
    assert stale(toy, assets) == dict.fromkeys(readers, "models/tiny has changed")
    assert f"{STUDY}/top/evaluation" in readers and ("models", "tiny") not in assets[f"{STUDY}/top/evaluation"].deps


def test_an_input_without_a_manifest_says_nothing(toy, assets):
    toy.store.forget("models/tiny")
    assert stale(toy, assets) == {"models/tiny": "is incomplete in the store: has no manifest"}


def test_an_input_that_was_not_read_before_is_named(toy, assets):
    read = dict(toy.store.read_manifest(f"{STUDY}/top/student").input_data_versions)
    del read[f"{STUDY}/teacher_hidden"]
    change(toy, f"{STUDY}/top/student", input_data_versions=read)
    assert stale(toy, assets) == {f"{STUDY}/top/student": f"has a new dependency on {STUDY}/teacher_hidden"}


def test_a_manifest_with_more_inputs_than_are_read_now_is_fresh(toy, assets):
    read = toy.store.read_manifest(f"{STUDY}/top/student").input_data_versions
    change(toy, f"{STUDY}/top/student", input_data_versions={**read, "models/other": "x"})
    assert stale(toy, assets) == {}


def test_the_users_files_are_recorded_and_compared(toy, assets):
    recorded = toy.store.read_manifest("datasets/extra").input_data_versions
    assert recorded["files/extra"] == assets["datasets/extra"].observed_files[0].version(toy.store)
    change(toy, "datasets/extra", input_data_versions={"files/extra": "of other content"})
    assert stale(toy, assets) == {"datasets/extra": "files/extra has changed"}


def test_a_manifest_that_records_no_files_is_judged_by_their_age(toy, assets):
    """As those of earlier versions of tokenuq."""
    provenance = change(toy, "datasets/extra", input_data_versions={}).provenance
    unproven = {"datasets/extra": "files/extra has changed since, or no record says that it has not"}
    now = datetime.now(UTC)
    for made_at, reasons in ((now + HOUR, {}), (now - HOUR, unproven), (None, unproven)):
        text = made_at.isoformat() if made_at else None
        change(toy, "datasets/extra", provenance=provenance.model_copy(update={"made_at": text}))
        assert stale(toy, assets) == reasons
