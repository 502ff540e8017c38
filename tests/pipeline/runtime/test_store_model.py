"""The store compared with a dictionary, while it is published to, pruned, restored, adopted and killed between
any two calls.

A killed publication leaves the old asset, the new one, or none, and never a mixture; the next start leaves the new one
or, where a file of that was damaged meanwhile, the old one. A killed deletion or restoration is completed by the same
command.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from unittest import mock

import dagster as dg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.crashes import Crash
from tests.support.store_actions import (
    ASSETS,
    MEMORY,
    begun,
    bring_back,
    damage,
    fill,
    in_trash,
    killed,
    observed,
    prune,
    publish,
    recorded,
    stage_asset,
    tables_read,
)
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.automation import adoption
from tokenuq_pipeline.automation.staleness import Records
from tokenuq_pipeline.runtime.dagster_internals import last_recorded
from tokenuq_pipeline.runtime.restoring import NotRestorable
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of
from tokenuq_pipeline.runtime.trash import TIME, Trash

pytestmark = pytest.mark.slow

KEYS = [dg.AssetKey(asset.split("/")) for asset in ASSETS]
GRAPH = dg.Definitions([dg.AssetSpec(key) for key in KEYS]).resolve_asset_graph()


class StoreMachine(RuleBasedStateMachine):
    """Actions of runs and users, each of which may be killed at any change to the disk."""

    assets = st.sampled_from(ASSETS)
    crashes = st.one_of(st.none(), st.integers(1, 20), st.integers(21, 180))

    def __init__(self):
        super().__init__()
        self.store = Store(tempfile.mkdtemp(prefix="store-model-", dir=MEMORY))
        self.versions = 0
        self.model: dict[str, str | None] = dict.fromkeys(ASSETS)
        """Asset -> the version that readers must get."""
        self.trash: dict[str, list[str]] = {asset: [] for asset in ASSETS}
        """Asset -> the versions that can be restored, oldest first."""
        self.half_pruned: set[str] = set()
        """Assets of which a killed deletion has moved some folders; the next one moves the rest to them."""
        self.half_restored: dict[str, str] = {}
        """Asset -> the version of which a killed restoration has moved some folders."""
        self.interrupted: dict[str, tuple[str, str | None]] = {}
        """Asset whose publication was interrupted -> the version that the next start leaves, and the one before."""
        self.instance = dg.DagsterInstance.ephemeral()
        self.records = Records(
            GRAPH, {key: stage_asset(key.to_user_string()) for key in KEYS}, self.instance, self.store
        )
        self.known: dict[str, str | None] = dict.fromkeys(ASSETS)
        """Asset -> the version that Dagster has recorded."""
        self.torn: set[str] = set()
        """Versions in the trash that have lost folders to a later version, or to an emptied trash."""

    def teardown(self):
        self.instance.dispose()
        shutil.rmtree(self.store.home)

    def killed(self, action: Callable[[Store], None], number: int | None, exchange: bool = True) -> bool:
        """Run an action in a process that is killed at a change; return whether it was."""
        return killed(self.store, action, number, exchange)

    def look(self, asset: str) -> None:
        """Note what the store and the trash hold now."""
        self.model[asset] = observed(self.store, asset)
        self.trash[asset] = in_trash(self.store, asset)
        if begun(self.store, asset) is None:
            self.interrupted.pop(asset, None)
        if recorded(self.store, asset) is None or self.model[asset] is not None:
            self.half_pruned.discard(asset)

    def replaces(self, asset: str) -> None:
        """Note that an action may replace folders that a killed restoration has moved."""
        if asset in self.half_restored:
            self.torn.add(self.half_restored.pop(asset))

    @rule(asset=assets, crash=crashes, exchange=st.booleans())
    def publish(self, asset, crash, exchange):
        self.versions += 1
        old, new, trash = self.model[asset], f"v{self.versions:06d}", self.trash[asset]
        left = self.expected(asset)
        staged = fill(self.store, asset, new)
        self.replaces(asset)
        killed = self.killed(lambda store: publish(store, asset, new, staged), crash, exchange)
        if begun(self.store, asset) == new:
            self.interrupted[asset] = (new, left)
        self.look(asset)
        assert self.model[asset] in ((old, left, new, None) if killed else (new,))
        assert self.trash[asset] == trash

    def expected(self, asset: str) -> str | None:
        """Return the version that the next start leaves."""
        return self.interrupted[asset][0] if asset in self.interrupted else self.model[asset]

    @rule(crash=crashes, exchange=st.booleans())
    def start(self, crash, exchange):
        self.was_killed_at_start(crash, exchange)

    def was_killed_at_start(self, crash: int | None, exchange: bool = True) -> bool:
        """Begin a command or a run."""
        before, expected = dict(self.model), {asset: self.expected(asset) for asset in ASSETS}
        killed = self.killed(lambda store: store.recover(), crash, exchange)
        for asset in ASSETS:
            self.look(asset)
            if killed:
                assert self.model[asset] in (before[asset], None, expected[asset])
            else:
                assert self.model[asset] == expected[asset] and asset not in self.interrupted
        return killed

    @rule(asset=assets, crash=crashes, exchange=st.booleans())
    def start_after_damage(self, asset, crash, exchange):
        """A file of the version that was being published changes before the next start, which may be killed too."""
        if asset not in self.interrupted or begun(self.store, asset) == self.model[asset]:
            return
        version, before = self.interrupted[asset]
        if version != before:
            damage(self.store, asset, version)
            self.interrupted[asset] = (before, before)
        self.was_killed_at_start(crash, exchange)
        self.was_killed_at_start(None)

    @initialize()
    def a_first_run(self):
        for asset in ASSETS:
            self.publish(asset, None, True)

    @rule(asset=assets, crash=crashes)
    def publish_until_it_is_there(self, asset, crash):
        """A run that was killed is started again, over whatever the first one left."""
        self.publish(asset, crash, True)
        self.publish(asset, None, True)

    @rule(asset=assets, crash=crashes, now=st.booleans())
    def prune(self, asset, crash, now):
        if self.was_killed_at_start(crash):
            return
        old, version, trash = self.model[asset], recorded(self.store, asset), self.trash[asset]
        if version is not None:
            self.replaces(asset)
            if old is None and asset not in self.half_pruned:
                self.torn.add(version)
        killed = self.killed(lambda store: prune(store, asset, now), crash)
        self.look(asset)
        assert self.model[asset] in ((old, None) if killed else (None,))
        if version is None:
            assert self.trash[asset] == trash
        elif recorded(self.store, asset) is None:
            assert self.trash[asset] in (
                ((trash, [*trash, version]) if killed else (trash,)) if now else ([*trash, version],)
            )
        else:
            assert killed and self.trash[asset] == trash
            if self.model[asset] is None and version not in self.torn:
                self.half_pruned.add(asset)

    @rule(asset=assets, crash=crashes)
    def restore(self, asset, crash):
        if self.was_killed_at_start(crash):
            return
        old, trash = self.model[asset], self.trash[asset]
        refused = trash and (recorded(self.store, asset) is not None or trash[-1] in self.torn)
        try:
            killed = self.killed(lambda store: bring_back(store, asset), crash)
        except NotRestorable:
            assert refused
            return
        self.look(asset)
        if killed and self.trash[asset] == trash:
            assert self.model[asset] == old
            if trash and not refused:
                self.half_restored[asset] = trash[-1]
        elif trash:
            # By luck: what was left of two versions of one content fits together.
            assert self.model[asset] == trash[-1] and self.trash[asset] == trash[:-1]
            self.half_restored.pop(asset, None)

    @rule(asset=assets, first=crashes, second=crashes)
    def prune_and_restore_until_it_is_back(self, asset, first, second):
        """Commands that were killed are given again."""
        version = self.model[asset]
        for number in (first, None):
            self.prune(asset, number, False)
        for number in (second, None):
            self.restore(asset, number)
        assert version in (None, self.model[asset])

    @rule(asset=assets, crash=crashes)
    def restore_after_the_trash_was_emptied_in_part(self, asset, crash):
        self.empty_the_trash(crash, False)
        self.restore(asset, None)

    @rule(crash=crashes, old_only=st.booleans())
    def empty_the_trash(self, crash, old_only):
        """Also what has been there for a week, which every command deletes."""
        if old_only:
            for entry in Trash(self.store.home).entries():
                time, _, identifier = entry.path.name.partition("-")
                name = f"{datetime.strptime(time, TIME) - timedelta(days=8):{TIME}}-{identifier}"
                os.rename(entry.path, entry.path.with_name(name))
        trash = dict(self.trash)
        killed = self.killed(
            lambda store: Trash(store.home).empty_old() if old_only else Trash(store.home).empty(), crash
        )
        for asset in ASSETS:
            self.look(asset)
            left = self.trash[asset]
            assert left == trash[asset][len(trash[asset]) - len(left) :] and (killed or not left)
        assert killed or Trash(self.store.home).bytes == 0
        self.half_pruned.clear()

    @rule(asset=assets, crash=crashes)
    def forget(self, asset, crash):
        old = self.model[asset]
        killed = self.killed(lambda store: store.forget(asset), crash)
        self.look(asset)
        assert self.model[asset] in ((old, None) if killed else (None,))

    @rule(events=st.one_of(st.none(), st.integers(0, 1)))
    def adopt(self, events):
        """A new `DAGSTER_HOME` is told what the store holds; killed after some events, or not at all."""
        self.was_killed_at_start(None)
        before, told = dict(self.known), []

        def report(event):
            if len(told) == events:
                raise Crash
            told.append(event.asset_key.to_user_string())
            report_to_dagster(event)

        report_to_dagster = self.instance.report_runless_asset_event
        with (
            mock.patch.object(self.instance, "report_runless_asset_event", report),
            mock.patch.object(adoption.metadata, "materialization", lambda *arguments: {}),
            contextlib.suppress(Crash),
        ):
            adoption.adopt(self.records, KEYS)
            events = None
        for key in KEYS:
            record = last_recorded(self.instance, key)
            self.known[key.to_user_string()] = None if record.storage_id is None else record.data_version
        for asset, version in self.model.items():
            # What the store has lost stays recorded: it is stale, and made again.
            expected = version or before[asset]
            assert self.known[asset] in ((before[asset], expected) if events is not None else (expected,))
            assert (asset in told) == (self.known[asset] != before[asset])

    @invariant()
    def readers_get_what_the_model_says(self):
        store = Store(self.store.home)
        assert {asset: observed(store, asset) for asset in ASSETS} == self.model
        assert not any(map(store.damaged_manifest, ASSETS))
        complete = [asset for asset, version in self.model.items() if version is not None]
        places = [place for asset in complete for place in places_of(asset).values()]
        assert tables_read(store) == {place for place in places if place.partition("/")[0] in TABLES}

    @invariant()
    def the_trash_holds_what_the_model_says(self):
        store = Store(self.store.home)
        assert {asset: in_trash(store, asset) for asset in ASSETS} == self.trash


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=12, stateful_step_count=20, derandomize=True, **COMMON)


class TestStoreLonger(StoreMachine.TestCase):
    """The same with other draws each time, for `make test-heavy` and `make survive`."""

    settings = settings(max_examples=400, stateful_step_count=40, print_blob=True, **COMMON)


TestStoreLonger = pytest.mark.heavy(TestStoreLonger)
