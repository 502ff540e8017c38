"""What several commands share: the configuration, the store, the instance, a study by its name."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home, store_home


@dataclass(frozen=True)
class Project:
    """Configuration, definitions, store and Dagster's instance, as the environment names them."""

    config: object
    defs: object
    store: object
    instance: object

    def studies(self, name: str | None) -> list[str]:
        """The named study, or all that are enabled."""
        if name:
            return [known_study(self.config, name)]
        return [study for study, spec in self.config.studies.items() if spec.enabled]


def known_study(config, name: str) -> str:
    """`name`, where there is such a study.

    Raises:
        InputError: there is none; the message says which there are.
    """
    if name not in config.studies:
        raise InputError(f"studies.yaml: no study {name!r}; there are {', '.join(config.studies) or 'none'}")
    return name


def configuration():
    """The configuration alone, which needs no Dagster."""
    from tokenuq_ml.config.load import load_config

    return load_config(*config_folders(os.environ))


@contextlib.contextmanager
def project() -> Iterator[Project]:
    """Everything, with the instance open."""
    dagster_home()
    import dagster as dg

    from tokenuq_pipeline.definitions import build_defs
    from tokenuq_pipeline.runtime.store import Store

    config, store = configuration(), Store(store_home())
    defs = build_defs(config, store.home)
    with dg.DagsterInstance.get() as instance:
        yield Project(config, defs, store, instance)
