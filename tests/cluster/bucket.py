"""The same study with its store in a bucket, on nodes that share nothing but that bucket with the run."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cluster.study import ClusterStudy
from tests.support.s3_server import BUCKET, environment
from tokenuq_ml.object_store.address import Address, mirror_folder
from tokenuq_pipeline.runtime.bucket_store import copy_assets, open_store
from tokenuq_pipeline.runtime.store import Store


class BucketStudy(ClusterStudy):
    """The study in a bucket, as a machine sees it.

    Args:
        folder: of Dagster's home and of the machine's cache.
        service: address of the S3 service.
        inputs: folder of the configuration and the data.
        prefix: of the store in the bucket.
    """

    def __init__(self, folder: Path, service: str, inputs: Path, prefix: str):
        self.address, self.cache = f"s3://{BUCKET}/{prefix}", folder / "cache"
        self.access = environment(service)
        super().__init__(folder, mirror_folder(Address.parse(self.address), self._variables()), inputs)

    def start(self, address: str | None, *assets: str, **environment: str) -> subprocess.Popen:
        """Start a run of the study, or of some assets."""
        return super().start(address, *assets, **{"TOKENUQ_HOME": self.address, **self._variables(), **environment})

    def take(self, other: ClusterStudy, names: Iterable[str]) -> None:
        """Copy complete assets of a store in a folder into the bucket."""
        names = set(names)

        class Some(Store):
            def assets(self) -> list[str]:
                return [name for name in super().assets() if name in names]

        before = {name: os.environ.get(name) for name in self._variables()}
        os.environ.update(self._variables())
        try:
            copy_assets(Some(other.home), open_store(self.address))
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _variables(self) -> Mapping[str, str]:
        return {**self.access, "TOKENUQ_CACHE": str(self.cache)}
