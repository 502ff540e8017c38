"""An S3 service on this machine."""

from tests.support.s3_fixtures import s3_proxy, s3_service, store_address

__all__ = ["s3_proxy", "s3_service", "store_address"]
