"""Datasets at `s3://` addresses, read from moto's server on this machine through fsspec and s3fs."""

import json

import pytest

from tests.support.tiny_datasets import chat, messages_spec
from tokenuq_ml.data.load import load_examples, why_unavailable
from tokenuq_ml.data.sources import remote
from tokenuq_ml.errors import InputError

pytestmark = pytest.mark.slow
s3fs = pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server():
    started = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    yield "http://{}:{}".format(*started.get_host_and_port())
    started.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """A client of the server, with the bucket `rows`; the environment is that of a user who has access to it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="rows")
    yield client
    for one in client.list_objects_v2(Bucket="rows").get("Contents", ()):
        client.delete_object(Bucket="rows", Key=one["Key"])
    client.delete_bucket(Bucket="rows")


def put(bucket, key: str, *asked: str) -> None:
    bucket.put_object(Bucket="rows", Key=key, Body="".join(json.dumps(chat(text)) + "\n" for text in asked).encode())


def read(address: str, count: int = 1) -> tuple[list[str], str]:
    """Return the questions at an address, and the name of the local copy, which is that of its version."""
    spec = messages_spec(address, {"train": count})
    assert why_unavailable(spec) is None
    asked = sorted(example.question for example in load_examples(spec).examples)
    return asked, remote.local_copy(spec).parent.name


def test_a_file_is_read_and_read_again_when_it_has_changed(bucket):
    put(bucket, "d/a.jsonl", "one")
    asked, version = read("s3://rows/d/a.jsonl")
    assert asked == ["one"] and read("s3://rows/d/a.jsonl") == (asked, version)
    put(bucket, "d/a.jsonl", "two")
    again, changed = read("s3://rows/d/a.jsonl")
    assert again == ["two"] and changed != version


def test_a_folder_follows_its_files_within_a_process(bucket):
    """Before: fsspec's listing of the folder was kept for the process, and with it the rows."""
    put(bucket, "d/a.jsonl", "one")
    asked, version = read("s3://rows/d")
    put(bucket, "d/deep/b.jsonl", "two")
    more, added = read("s3://rows/d", 2)
    put(bucket, "d/a.jsonl", "three")
    changed, last = read("s3://rows/d", 2)
    assert (asked, more, changed) == (["one"], ["one", "two"], ["three", "two"])
    assert len({version, added, last}) == 3


@pytest.mark.parametrize("address", ["s3://none/a.jsonl", "s3://rows/none.jsonl", "s3://none"])
def test_a_missing_bucket_or_file_is_one_sentence(bucket, address):
    said = why_unavailable(messages_spec(address))
    assert (
        said == f"dataset chats: {address}: no such bucket, folder or file; correct `path:` of chats in datasets.yaml"
    )
    with pytest.raises(InputError) as caught:
        load_examples(messages_spec(address))
    assert str(caught.value) == said


def test_missing_credentials_are_one_sentence(bucket, monkeypatch):
    put(bucket, "a.jsonl", "one")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    said = why_unavailable(messages_spec("s3://rows/a.jsonl"))
    assert "s3://rows/a.jsonl: cannot be read (NoCredentialsError: " in said and said.endswith(
        "check the address and the access to it, or download the files and name their folder"
    )
    assert "\n" not in said
