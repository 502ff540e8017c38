"""Each action on a store, killed at its first change to the disk, at its second, and so on to its last."""

import errno

import pytest

from tests.support.crashes import Crash
from tests.support.manifests import complete
from tests.support.store_actions import (
    ASSETS,
    FILES,
    at_each_change,
    bring_back,
    damage,
    fill,
    in_trash,
    interrupt,
    killed,
    observed,
    prune,
    publish,
    recorded,
    tables_read,
)
from tests.support.tiny_store import manifest
from tokenuq_pipeline.runtime import journal
from tokenuq_pipeline.runtime.journal import Outcome
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.publication import is_interrupted
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of
from tokenuq_pipeline.runtime.trash import Trash

pytestmark = pytest.mark.slow

OLD, NEW, NEWER = "v000001", "v000002", "v000003"
MIDDLE = 64
"""A change of a publication between the removal of the old manifest and the new one."""
ASSET = ASSETS[0]
heavy = pytest.mark.heavy


def publish_version(store: Store, version: str) -> None:
    publish(store, ASSET, version, fill(store, ASSET, version))


def prepared(first: bool):
    """Return what makes a store with the version before, or none, and the next one staged."""

    def prepare(store):
        if not first:
            publish_version(store, OLD)
        fill(store, ASSET, NEW)

    return prepare


@pytest.mark.parametrize("exchange", [True, pytest.param(False, marks=heavy)])
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=heavy)])
def test_a_publication_that_is_killed_at_any_change(exchange, first):
    def action(store):
        publish(store, ASSET, NEW, {output: store.home / ".staging" / NEW / output for output in places_of(ASSET)})

    seen = set()

    def check(store):
        seen.add(observed(store, ASSET))
        assert store.damaged_manifest(ASSET) is None and Leases(store.home).holder(ASSET) is None
        publish_version(store, NEWER)
        assert observed(store, ASSET) == NEWER

    assert at_each_change(prepared(first), action, check, exchange) > 40
    assert seen == {None, NEW} | (set() if first else {OLD})


@pytest.mark.parametrize("exchange", [True, pytest.param(False, marks=heavy)])
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=heavy)])
def test_the_next_start_completes_a_publication_or_leaves_the_version_before(exchange, first):
    def action(store):
        publish(store, ASSET, NEW, {output: store.home / ".staging" / NEW / output for output in places_of(ASSET)})

    seen = []

    def check(store):
        now, began = observed(store, ASSET), is_interrupted(store.home, ASSET)
        found = store.recover()
        seen.append((now, observed(store, ASSET)))
        assert found == ({ASSET: Outcome.COMPLETED} if began else {})
        assert seen[-1][1] == (NEW if began or now == NEW else None if first else OLD)
        assert not any(store.home.glob(".publishing/*"))
        assert store.recover() == {} and Trash(store.home).bytes == 0

    at_each_change(prepared(first), action, check, exchange)
    before = None if first else OLD
    assert set(seen) == {(before, before), (before, NEW), (None, NEW), (NEW, NEW)}


@pytest.mark.parametrize("exchange", [True, pytest.param(False, marks=heavy)])
@pytest.mark.parametrize("intact", ["new", "old", "none"])
def test_a_recovery_that_is_killed_at_any_change_is_done_by_the_next(exchange, intact):
    """Of a publication that was killed in its middle, and whose files were damaged then."""
    expected = {"new": NEW, "old": OLD, "none": None}[intact]
    outcome = {"new": Outcome.COMPLETED, "old": Outcome.ROLLED_BACK, "none": Outcome.SET_ASIDE}[intact]

    def prepare(store):
        prepared(first=False)(store)
        assert killed(store, action, MIDDLE, exchange) and is_interrupted(store.home, ASSET)
        assert observed(store, ASSET) is None and recorded(store, ASSET) is None
        for version in {"new": (), "old": (NEW,), "none": (OLD, NEW)}[intact]:
            damage(store, ASSET, version)

    def action(store):
        publish(store, ASSET, NEW, {output: store.home / ".staging" / NEW / output for output in places_of(ASSET)})

    found = []

    def check(store):
        assert observed(store, ASSET) in (None, expected) and store.damaged_manifest(ASSET) is None
        found.append(store.recover().get(ASSET))
        assert observed(store, ASSET) == expected and not any(store.home.glob(".publishing/*"))
        publish_version(store, NEWER)
        assert observed(store, ASSET) == NEWER

    assert at_each_change(prepare, lambda store: store.recover(), check, exchange) > 5
    assert outcome in found and set(found) <= {outcome, Outcome.SUPERSEDED, None}


def test_nothing_is_decided_while_a_file_cannot_be_read(tmp_path, monkeypatch):
    """A network file system that is away for a moment costs no version."""
    store = Store(tmp_path)
    publish_version(store, OLD)
    interrupt(store, ASSET)

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as away:
        away.setattr(journal, "sha256_of", refuse)
        assert store.recover() == {} and is_interrupted(store.home, ASSET) and store.assets() == []
    assert store.recover() == {ASSET: Outcome.COMPLETED} and observed(store, ASSET) == OLD


def test_what_is_being_made_is_left_to_its_run(tmp_path):
    store = Store(tmp_path)
    publish_version(store, OLD)
    interrupt(store, ASSET)
    with store.leases.hold(ASSET, print):
        assert store.recover() == {} and is_interrupted(store.home, ASSET)
        assert store.recover(held=[ASSET]) == {ASSET: Outcome.COMPLETED}


def test_a_journal_of_an_asset_that_was_published_since_goes_to_the_trash(tmp_path):
    """By a version of tokenuq that knows no journals."""
    store = Store(tmp_path)
    publish_version(store, OLD)
    interrupt(store, ASSET)
    for place in places_of(ASSET).values():
        for name in FILES:
            store.path(f"{place}/{name}").write_text(f"{NEW} {place}/{name}")
    complete(store, manifest(ASSET, data_version=NEW, outputs=places_of(ASSET)))
    assert store.recover() == {ASSET: Outcome.SUPERSEDED} and observed(store, ASSET) == NEW
    assert Trash(store.home).bytes > 0 and not any(store.home.glob(".publishing/*"))


def test_an_output_that_only_the_damaged_version_has_goes_with_it(tmp_path, monkeypatch):
    store, (kept, added) = Store(tmp_path), places_of(ASSET).items()

    def publish_with(version, outputs):
        staged = {output: folder for output, folder in fill(store, ASSET, version).items() if output in outputs}
        files = store.settle(staged, outputs)
        store.publish(manifest(ASSET, data_version=version, outputs=outputs, files=files), staged)

    def die(*_):
        raise Crash

    publish_with(OLD, dict([kept]))
    with monkeypatch.context() as death, pytest.raises(Crash):
        death.setattr(journal.Journal, "_move_manifest", die)
        death.setattr(journal.Journal, "recover", die)
        publish_with(NEW, dict([kept, added]))
    damage(store, ASSET, NEW)
    assert store.path(added[1]).exists() and store.recover() == {ASSET: Outcome.ROLLED_BACK}
    assert store.problems(ASSET) == [] and store.data_version(ASSET) == OLD and not store.path(added[1]).exists()


@pytest.mark.parametrize("now", [False, pytest.param(True, marks=heavy)])
def test_a_deletion_that_is_killed_at_any_change(now):
    seen = set()

    def check(store):
        seen.add(observed(store, ASSET))
        prune(store, ASSET, now)
        assert observed(store, ASSET) is None and store.assets() == [] and tables_read(store) == set()
        if now:
            Trash(store.home).empty()
            assert Trash(store.home).all() == []
        else:
            assert in_trash(store, ASSET) == [OLD]
            bring_back(store, ASSET)
            assert observed(store, ASSET) == OLD and Trash(store.home).bytes == 0

    count = at_each_change(
        lambda store: publish_version(store, OLD), lambda store: prune(store, ASSET, now), check, True
    )
    assert count > 20 and seen == {OLD, None}


def test_a_restoration_that_is_killed_at_any_change():
    def prepare(store):
        publish_version(store, OLD)
        prune(store, ASSET)

    seen = set()

    def check(store):
        seen.add(observed(store, ASSET))
        bring_back(store, ASSET)
        assert observed(store, ASSET) == OLD and in_trash(store, ASSET) == []

    count = at_each_change(prepare, lambda store: bring_back(store, ASSET), check, True)
    assert count > 15 and seen == {None, OLD}


@heavy
def test_an_emptying_of_the_trash_that_is_killed_at_any_change():
    def prepare(store):
        for version in (OLD, NEW):
            publish_version(store, version)
            prune(store, ASSET)

    seen = set()

    def check(store):
        left = in_trash(store, ASSET)
        seen.add(len(left))
        bring_back(store, ASSET)
        assert observed(store, ASSET) == (left[-1] if left else None)
        Trash(store.home).empty()
        assert Trash(store.home).all() == [] and observed(store, ASSET) == (left[-1] if left else None)

    assert at_each_change(prepare, lambda store: Trash(store.home).empty(), check, True) > 15
    assert seen == {2, 1, 0}
