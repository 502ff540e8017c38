"""Assets of a store in a bucket: published by one step, verified as they are fetched, pruned and restored."""

import contextlib
import dataclasses
import itertools
import threading

import pytest

from tests.support import store_actions
from tests.support.owners import elsewhere
from tests.support.s3_server import CUT_REQUEST, LOSE_ANSWER, REFUSE
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store import mirror as mirror_module
from tokenuq_ml.object_store import registry
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.object_store.manifest_copies import ManifestCopies
from tokenuq_ml.tables.partitions import store_home
from tokenuq_pipeline.runtime import bucket_pruning, leases, owners
from tokenuq_pipeline.runtime.bucket_pruning import NotRemovable, removable, remove, restorable, restore
from tokenuq_pipeline.runtime.bucket_store import BucketStore, copy_assets, fetch, open_store
from tokenuq_pipeline.runtime.leases import LeaseLost, LeaseRecord
from tokenuq_pipeline.runtime.owners import Owner, clean_heartbeats, heartbeat_of
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of

pytestmark = pytest.mark.slow
ASSET = "datasets/d"
OTHER = "s/a/student"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """See at once what another machine does."""
    refresh = ManifestCopies.refresh
    monkeypatch.setattr(ManifestCopies, "refresh", lambda self, max_age_s=0: refresh(self, 0))
    monkeypatch.setattr(mirror_module, "REFRESH_S", 0)
    # On a busy machine a list takes long, and would be used for seconds.
    monkeypatch.setattr(mirror_module, "LISTING_PAUSES", 0)
    monkeypatch.setattr(leases, "POLL_S", 0.05)


def publish(store, version: str, asset: str = ASSET) -> None:
    store_actions.publish(store, asset, version, store_actions.fill(store, asset, version))


def seen(store, asset: str = ASSET) -> str | None:
    """Return the version that a machine reads, after a look at every file; None if it is incomplete."""
    if not store.is_complete(asset):
        return None
    fetch(store, asset, lambda path: True)
    return store_actions.observed(store, asset)


def test_what_one_machine_publishes_another_reads(machine):
    one, two = machine("one"), machine("two")
    assert seen(two) is None and two.assets() == []
    for version in ("1", "2"):
        publish(one, version)
        assert seen(one) == seen(two) == version
    assert two.manifest_age(ASSET) < 60 and two.assets() == [ASSET]
    publish(two, "3")
    assert seen(one) == seen(two) == "3"


@pytest.mark.parametrize(
    "kind", [LOSE_ANSWER, *(pytest.param(kind, marks=pytest.mark.heavy) for kind in (REFUSE, CUT_REQUEST))]
)
def test_requests_that_fail_on_the_way_change_nothing(machine, s3_proxy, kind):
    store = machine("one")
    publish(store, "1")
    hit = [s3_proxy.break_next(kind, "PUT", part) for part in (".leases/", "/part-0.parquet/", ".manifests/")]
    hit += [s3_proxy.break_next(kind, "GET", part) for part in (".manifests", "/part-0.parquet/")]
    publish(store, "2")
    assert seen(machine("two")) == "2" and [fault.times for fault in hit] == [0] * len(hit)


@pytest.mark.heavy
def test_a_run_that_ends_before_the_manifest_leaves_the_old_version(machine):
    one, two = machine("one"), machine("two")
    publish(one, "1")
    staged = store_actions.fill(one, ASSET, "2")
    one.settle(staged, places_of(ASSET))
    assert seen(one) == seen(two) == "1" and one.problems(ASSET) == []


def test_what_is_undamaged_in_a_folder_is_copied(machine, tmp_path):
    folder, store = Store(tmp_path / "folder"), machine("one")
    for asset in (ASSET, OTHER):
        publish(folder, "1", asset)
    file = folder.path(folder.read_manifest(OTHER).files[0].path)
    file.write_bytes(bytes(file.stat().st_size))
    assert copy_assets(folder, store) == [ASSET]
    assert seen(machine("two")) == "1" and store.assets() == [ASSET] and copy_assets(folder, store) == []


@pytest.mark.heavy
def test_a_machine_that_is_cut_off_at_any_request_leaves_one_version(machine, s3_proxy, monkeypatch):
    """The service answers the first requests of a publication and then no more, for every number of them."""
    two = machine("two")
    monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "0.2")
    one, version = machine("one"), 0
    publish(one, "00")
    for number in itertools.count(1):
        before, version = seen(two), version + 1
        s3_proxy.left = number
        with contextlib.suppress(StoreAway, LeaseLost):
            publish(one, f"{version:02d}")
        was_cut = s3_proxy.is_away
        s3_proxy.left, s3_proxy.is_away = None, False
        assert seen(two) in (before, f"{version:02d}")
        if not was_cut:
            break
    assert number > 20 and seen(two) == seen(one) == f"{version:02d}"


def test_who_was_overtaken_publishes_nothing(machine):
    """The first machine is suspended between the look at its lease and the put of the manifest."""
    one, two = machine("one"), machine("two")
    publish(one, "1")
    put = one.publish

    def suspended(manifest, staged):
        one.publish = put
        two.leases._files.rewrite(ASSET, dataclasses.replace(two.leases.latest(ASSET), released=True))
        publish(two, "2")
        put(manifest, staged)

    one.publish = suspended
    with pytest.raises(LeaseLost, match="^datasets/d: another run has published it, or it was deleted"):
        publish(one, "late")
    assert seen(one) == seen(two) == "2"


def test_a_damaged_object_is_refused_found_and_replaced(machine):
    one, two = machine("one"), machine("two")
    publish(one, "1")
    file = next(file for file in one.read_manifest(ASSET).files if file.path.endswith(".parquet"))
    key = f"{file.path}/{file.sha256}"
    one.mirror.bucket.write(key, bytes(file.bytes))
    with pytest.raises(InputError, match=f"{key}: its SHA-256 begins with .*verify --forget"):
        fetch(two, ASSET, lambda path: True)
    assert not (two.home / file.path).exists()
    assert [problem.partition(":")[0] for problem in two.problems(ASSET)] == [file.path]
    two.forget(ASSET)
    assert seen(one) is None
    publish(one, "1")
    assert seen(two) == "1"
    one.mirror.bucket.delete([key])
    assert seen(two) is None and two.incomplete_because(ASSET) == f"{two.mirror.address}/{key} is missing"


@pytest.mark.heavy
def test_a_damaged_copy_is_fetched_again(machine):
    one, two = machine("one"), machine("two")
    publish(one, "1")
    assert seen(two) == "1"
    for path in (two.home / places_of(ASSET)["examples"]).rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    (two.home / ".manifests" / f"{ASSET}.json").write_text("{}")
    assert seen(two) == "1"


def test_a_service_that_is_away_is_one_sentence(machine, s3_proxy, monkeypatch):
    monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "0.5")
    store = machine("one")
    s3_proxy.is_away = True
    for action in (lambda: store.read_manifest(ASSET), lambda: store.assets(), lambda: store.is_complete(ASSET)):
        with pytest.raises(StoreAway, match="does not answer as it should"):
            action()
    s3_proxy.is_away = False
    assert store.read_manifest(ASSET) is None


@pytest.mark.heavy
def test_the_mirror_itself_is_no_store(machine, monkeypatch):
    store = machine("one")
    monkeypatch.setenv("TOKENUQ_HOME", str(store.mirror.address))
    monkeypatch.setattr(registry, "_mirrors", {})
    assert isinstance(open_store(store.home), BucketStore)
    moved = store.home.with_name("moved")
    store.home.rename(moved)
    with pytest.raises(InputError, match="is the local cache of a store in a bucket; set TOKENUQ_HOME to the address"):
        store_home(moved)


@pytest.mark.heavy
def test_one_machine_makes_an_asset_and_the_other_waits(machine):
    one, two = machine("one"), machine("two")
    said, got = [], threading.Event()

    def second():
        with two.leases.hold(OTHER, said.append):
            got.set()

    with one.leases.hold(OTHER, print, [OTHER, "s/a/evaluation"]) as lease:
        assert two.leases.holder("s/a/evaluation") == Owner.current()
        number = lease.number
        lease.require()
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        assert not got.wait(0.5) and lease.number == number + 1
    assert got.wait(10)
    thread.join()
    assert len(said) == 1 and one.leases.holder(OTHER) is None


@pytest.mark.heavy
def test_a_machine_that_is_silent_is_followed(machine, monkeypatch):
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "2")
    one, two = machine("one"), machine("two")
    record = LeaseRecord(1, 0.0, elsewhere(), "token", (ASSET,))
    assert one.leases.create(ASSET, record) and not two.leases.create(
        ASSET, record.__class__(1, 0.0, Owner.current(), "x")
    )
    with two.leases.hold(ASSET, print) as lease:
        assert lease.number == 2 and heartbeat_of(Owner.current(), one.home).age_s < 2
    assert heartbeat_of(Owner.current(), one.home) is None


@pytest.mark.heavy
def test_heartbeats_that_nobody_renews_are_deleted(machine, monkeypatch):
    store = machine("one")
    for name in ("1-1@b-n-gone", "2-2@b-n-gone"):
        store.mirror.bucket.write(f".owners/{name}", b"{}")
    clean_heartbeats(store.home)
    assert len(list(store.mirror.bucket.objects(".owners"))) == 2
    monkeypatch.setattr(owners, "KEPT_S", -2.0)
    with owners.beating(store.home):
        clean_heartbeats(store.home)
    assert list(store.mirror.bucket.objects(".owners")) == []


@pytest.mark.heavy
def test_a_deleted_asset_is_in_the_trash_for_a_week_and_its_objects_after_a_day(machine, monkeypatch):
    one, two = machine("one"), machine("two")
    publish(one, "1")
    publish(one, "1", OTHER)
    publish(one, "2")
    (item,) = [item for item in removable(one, {OTHER: "1-s"}) if item.name == ASSET]
    assert item.reason == "the configuration has no dataset d" and set(item.sizes) == set(places_of(ASSET).values())
    with two.leases.hold(ASSET, print), pytest.raises(NotRemovable, match="a run works on it"):
        remove(one, item)
    remove(one, item)
    assert seen(two) is None and list(restorable(two)) == [ASSET] and two.assets() == [OTHER]
    restore(two, ASSET, restorable(two, "datasets")[ASSET])
    assert seen(one) == "2" and restorable(one) == {}

    monkeypatch.setattr(bucket_pruning, "KEEP_UNREFERENCED_S", -1)
    before = len(one.mirror.objects())
    (left,) = removable(one, {ASSET: "1-s", OTHER: "1-s"})
    assert left.name == "objects that no manifest names" and len(left.keys) == 4
    remove(one, left)
    assert before - len(one.mirror.objects()) == 4 and seen(two) == "2" and seen(two, OTHER) == "1"
    (item,) = removable(one, {OTHER: "1-s"})
    remove(one, item, now=True)
    assert not [key for key in one.mirror.objects() if key.startswith(tuple(places_of(ASSET).values()))]
