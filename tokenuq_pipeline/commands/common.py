"""What several commands share: the configuration, the store, the Dagster instance, a study by its name."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home, store_home

if TYPE_CHECKING:
    import dagster as dg

    from tokenuq_ml.config.load import Config
    from tokenuq_pipeline.runtime.store import Store


@dataclass(frozen=True)
class Project:
    """Configuration, definitions, store and Dagster instance, as the environment names them."""

    config: "Config"
    defs: "dg.Definitions"
    store: "Store"
    instance: "dg.DagsterInstance"

    def studies(self, name: str | None) -> list[str]:
        """Return the named study, or all that are enabled.

        Raises:
            InputError: there is no such study.
        """
        if name:
            return [known_study(self.config, name)]
        return [study for study, spec in self.config.studies.items() if spec.enabled]


def known_study(config: "Config", name: str) -> str:
    """Return `name` if there is such a study.

    Raises:
        InputError: there is none; the message lists the studies.
    """
    if name not in config.studies:
        raise InputError(f"studies.yaml: no study {name!r}; there are {', '.join(config.studies) or 'none'}")
    return name


def configuration() -> "Config":
    """Load the configuration, without Dagster."""
    from tokenuq_ml.config.load import load_config

    return load_config(*config_folders(os.environ))


@contextlib.contextmanager
def project() -> Iterator[Project]:
    """Load everything and open the Dagster instance."""
    dagster_home()
    import dagster as dg

    from tokenuq_pipeline.definitions import build_defs
    from tokenuq_pipeline.runtime.store import Store

    config, store = configuration(), Store(store_home())
    defs = build_defs(config, store.home)
    with dg.DagsterInstance.get() as instance:
        yield Project(config, defs, store, instance)
