"""A study whose store is in a bucket: made by one machine, seen, queried and continued by another."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, FakeStagesInProcess, toy_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage

pytestmark = pytest.mark.slow


def run(store, config) -> dict[str, str]:
    """Bring the study up to date with a new Dagster instance, and return the data version of every asset."""
    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        defs = build_defs(config, store.home, FakeStagesInProcess())
        assert run_study(defs, config, STUDY, [], instance, store) == 0
    return {asset: store.data_version(asset) for asset in store.assets()}


def test_another_machine_goes_on_where_the_first_ended(address, proxy, monkeypatch, tmp_path, made_study, capsys):
    config = toy_config()
    versions = run(open_store(address), config)
    local = made_study.store
    assert versions == {asset: local.data_version(asset) for asset in local.assets()}

    monkeypatch.setenv("TOKENUQ_CACHE", str(tmp_path / "another machine"))
    store = open_store(address)
    assert not list(store.home.rglob("*.parquet")) and all(store.is_complete(asset) for asset in versions)
    capsys.readouterr()
    proxy.requests.clear()
    assert run(store, config) == versions and "up to date: nothing to recompute" in capsys.readouterr().out
    fetched = {path.relative_to(store.home).parts[0] for path in store.home.rglob("*.parquet")}
    assert not fetched & {"models", "teacher_hidden"}
    changed = toy_config(quantile=0.5)
    made = run(store, changed)
    assert {asset for asset in made if made[asset] != versions[asset]} >= {f"{STUDY}/top/student"}
    assert made["models/tiny"] == versions["models/tiny"]
