"""Objects through a proxy that loses, cuts, delays and refuses requests: nothing is lost, and nothing done twice."""

import os

import pytest

from tests.support.s3_server import CUT_ANSWER, CUT_REQUEST, LOSE_ANSWER, REFUSE, SLOW
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store import bucket as bucket_module
from tokenuq_ml.object_store.address import Address
from tokenuq_ml.object_store.bucket import Bucket, StoreAway

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(store_address):
    return Bucket(Address.parse(store_address))


def test_objects_are_written_read_listed_and_deleted(bucket):
    etag = bucket.write("a/study=x/part-0.parquet/1", b"one")
    content, info = bucket.read("a/study=x/part-0.parquet/1")
    assert (content, info.etag, info.bytes) == (b"one", etag, 3)
    bucket.write("ab/2", b"two")
    assert [info.key for info in bucket.objects("a")] == ["a/study=x/part-0.parquet/1"]
    assert len(list(bucket.objects())) == 2
    bucket.delete(["ab/2", "never"])
    assert bucket.read("ab/2") is None and bucket.info("ab/2") is None and len(list(bucket.objects())) == 1


def test_one_of_two_writers_creates_or_replaces(bucket):
    first = bucket.write_if("m", b"one", None)
    assert bucket.write_if("m", b"two", None) is None
    second = bucket.write_if("m", b"three", first)
    assert bucket.write_if("m", b"four", first) is None and bucket.write_if("none", b"five", second) is None
    assert bucket.read("m")[0] == b"three"


@pytest.mark.parametrize(
    "kind", [LOSE_ANSWER, *(pytest.param(kind, marks=pytest.mark.heavy) for kind in (REFUSE, CUT_REQUEST, SLOW))]
)
def test_a_conditional_put_is_done_once_whatever_becomes_of_the_request(bucket, s3_proxy, kind):
    """With a lost answer, the second try finds what the first one has written."""
    first = bucket.write_if("m", b"one", None)
    fault = s3_proxy.break_next(kind, "PUT", "/m")
    second = bucket.write_if("m", b"two", first)
    assert fault.times == 0 and second and second != first and bucket.read("m")[0] == b"two"
    s3_proxy.break_next(kind, "PUT", "/n")
    assert bucket.write_if("n", b"new", None) and bucket.read("n")[0] == b"new"


@pytest.mark.heavy
def test_large_files_are_sent_and_read_in_parts_each_repeated_alone(bucket, s3_proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 * 2**20)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(12 * 2**20))
    faults = [s3_proxy.break_next(kind, "PUT", "partNumber=2") for kind in (CUT_REQUEST, REFUSE)]
    bucket.upload("large", path)
    sent = [name for method, name in s3_proxy.requests if method == "PUT" and "partNumber" in name]
    assert sorted(name.split("partNumber=")[1][0] for name in sent) == ["1", "2", "2", "2", "3"]
    faults += [s3_proxy.break_next(kind, "GET", "/large") for kind in (CUT_ANSWER, REFUSE)]
    chunks = list(bucket.chunks("large", 12 * 2**20))
    assert b"".join(chunks) == path.read_bytes() and [len(chunk) >> 20 for chunk in chunks] == [5, 5, 2]
    assert [fault.times for fault in faults] == [0] * 4


@pytest.mark.heavy
def test_an_upload_that_fails_leaves_no_object(store_address, s3_proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 * 2**20)
    bucket = Bucket(Address.parse(store_address), away_s=0.5)
    path = tmp_path / "file"
    path.write_bytes(bytes(11 * 2**20))
    s3_proxy.break_next(REFUSE, "PUT", "partNumber=3", times=1000)
    with pytest.raises(StoreAway):
        bucket.upload("large", path)
    assert bucket.info("large") is None


def test_a_service_that_comes_back_in_time_is_waited_for_and_one_that_does_not_is_one_sentence(store_address, s3_proxy):
    bucket = Bucket(Address.parse(store_address), away_s=0.4)
    fault = s3_proxy.break_next(CUT_REQUEST, "GET", times=3)
    assert bucket.read("none") is None and fault.times == 0
    s3_proxy.is_away = True
    for request in (
        lambda: bucket.read("x"),
        lambda: bucket.write("x", b""),
        lambda: bucket.write_if("x", b"", None),
        lambda: list(bucket.objects()),
    ):
        with pytest.raises(StoreAway) as caught:
            request()
        said = str(caught.value)
        assert said.startswith(f"{store_address}: http://127.0.0.1") and "\n" not in said and "secret" not in said
        assert said.endswith("run the same command again once it does: what is complete is kept")


@pytest.mark.heavy
def test_a_bucket_that_does_not_exist_is_one_sentence(s3_proxy):
    bucket = Bucket(Address.parse("s3://nowhere/x"))
    for request in (lambda: bucket.read("x"), lambda: list(bucket.objects()), lambda: bucket.write("x", b"")):
        with pytest.raises(InputError, match="^s3://nowhere/x: there is no bucket nowhere; create it, or correct"):
            request()


@pytest.mark.heavy
def test_missing_credentials_are_one_sentence(s3_proxy, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="^s3://bucket: no credentials; set AWS_ACCESS_KEY_ID and"):
        Bucket(Address.parse("s3://bucket"))


@pytest.mark.heavy
def test_credentials_of_a_profile_are_used(store_address, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    bucket = Bucket(Address.parse(store_address))
    bucket.write("x", b"1")
    assert bucket.read("x")[0] == b"1"
