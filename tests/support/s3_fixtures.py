"""Fixtures: an S3 service, a faulty proxy before it, and the address of an empty store. A conftest imports them."""

import itertools

import pytest

from tests.support.s3_server import BUCKET, FaultyProxy, environment, s3_server
from tokenuq_pipeline.runtime.bucket_store import open_store

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_service():
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    with s3_server() as address:
        yield address


@pytest.fixture
def s3_proxy(s3_service, monkeypatch, tmp_path):
    """A proxy before the service, which the environment names, and a cache folder."""
    proxy = FaultyProxy(s3_service)
    with proxy.started() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TOKENUQ_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "10")
        yield proxy


@pytest.fixture
def store_address(s3_proxy):
    """The address of a store that holds nothing."""
    return f"s3://{BUCKET}/store-{next(_numbers)}"


@pytest.fixture
def machine(store_address, monkeypatch, tmp_path):
    """Return the store as a machine sees it, by the machine's name."""

    def store_of(name: str):
        monkeypatch.setenv("TOKENUQ_CACHE", str(tmp_path / name))
        return open_store(store_address)

    return store_of
