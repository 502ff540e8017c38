"""Dagster's webserver in this process."""

import dagster as dg
import pytest

from tokenuq_pipeline.runtime.dagster_internals import web_app


@pytest.fixture(scope="module")
def webserver(tmp_path_factory):
    """Dagster's application over an instance without code locations."""
    folder = tmp_path_factory.mktemp("instance")
    workspace = folder / "workspace.yaml"
    workspace.write_text("load_from: []\n")
    with dg.DagsterInstance.local_temp(str(folder)) as instance, web_app(instance, workspace) as app:
        yield instance, app


@pytest.fixture
def limits(webserver):
    """The pools that mutations of an attack have made; none before."""
    storage = webserver[0].event_log_storage
    for pool in storage.get_concurrency_keys():
        storage.delete_concurrency_limit(pool)
    return storage.get_concurrency_keys
