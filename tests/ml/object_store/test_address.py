"""Addresses of stores in a bucket, and the folders that mirror them."""

import pytest

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import Address, mirror_folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://a-team.data/uq/study=1//", "s3://a-team.data/uq/study=1"),
    ],
)
def test_an_address_is_a_bucket_and_a_prefix(text, said):
    assert str(Address.parse(text)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs://bucket/x", "a store is a folder, or an address s3://bucket/prefix"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3://Bucket/x", "'Bucket' is not the name of a bucket"),
        ("s3://bucket/../x", "'..' cannot be part of a prefix"),
        ("s3://bucket/.manifests", "'.manifests' cannot be part of a prefix"),
        ("s3://bucket/a b", "'a b' cannot be part of a prefix"),
    ],
)
def test_other_addresses_are_refused(text, said):
    with pytest.raises(InputError) as caught:
        Address.parse(text)
    assert str(caught.value).startswith(f"TOKENUQ_HOME: {text}: ") and said in str(caught.value)


def test_stores_of_one_name_have_a_mirror_each(tmp_path):
    def folder(text, **environment):
        return mirror_folder(Address.parse(text), {"TOKENUQ_CACHE": str(tmp_path), **environment})

    folders = [
        folder("s3://bucket/a/b"),
        folder("s3://bucket/a-b"),
        folder("s3://bucket/a/b", AWS_ENDPOINT_URL="http://x"),
    ]
    assert len(set(folders)) == 3 and {path.parent for path in folders} == {tmp_path}
    assert folders[0].name.startswith("bucket-a-b-")
