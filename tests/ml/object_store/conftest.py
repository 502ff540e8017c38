"""An S3 service on this machine."""

from tests.support.s3_fixtures import address, proxy, server

__all__ = ["address", "proxy", "server"]
