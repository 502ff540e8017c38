"""The store as a Dagster resource.

Only carries the path across; what a store does is in `store.py`.
"""

from pathlib import Path

import dagster as dg

from tokenuq_pipeline.store import Store


class StoreResource(dg.ConfigurableResource):
    """The folder that assets are published into."""

    home: str

    @property
    def store(self) -> Store:
        return Store(Path(self.home))
