"""What several commands share: the configuration, the store, the Dagster instance, a study by its name."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home

if TYPE_CHECKING:
    import dagster as dg

    from tokenuq_ml.config.load import Config
    from tokenuq_pipeline.runtime.store import Store


@dataclass(frozen=True)
class Project:
    """Configuration, store and Dagster instance, as the environment names them, and the definitions of some studies."""

    config: "Config"
    """All of it."""
    defs: "dg.Definitions"
    """Only of the studies that are asked for."""
    store: "Store"
    instance: "dg.DagsterInstance"


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
def project(*studies: str, config: "Config | None" = None) -> Iterator[Project]:
    """Build the definitions of some studies, and open the Dagster instance.

    Args:
        *studies: their names.
        config: the configuration; by default it is loaded.

    Raises:
        InputError: there is no such study.
    """
    dagster_home()
    config = config or configuration()
    for study in studies:
        known_study(config, study)
    import dagster as dg

    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.build_defs import build_defs
    from tokenuq_pipeline.runtime.bucket_store import open_store

    store = open_store()
    defs = build_defs(config_of(config, studies), store.home)
    with dg.DagsterInstance.get() as instance:
        yield Project(config, defs, store, instance)
