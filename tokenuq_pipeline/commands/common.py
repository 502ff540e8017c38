"""What several commands share: the configuration, the store, the Dagster instance, a study by its name."""

import argparse
import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home

if TYPE_CHECKING:
    import dagster as dg

    from tokenuq_ml.config.comparison import ComparisonSpec
    from tokenuq_ml.config.export import ExportSpec
    from tokenuq_ml.config.load import Config
    from tokenuq_pipeline.runtime.store import Store

STUDY_HELP = "a study in studies.yaml; one with a `grid` stands for the studies of all its cells"


@dataclass(frozen=True)
class Project:
    """Configuration, store and Dagster instance, as the environment names them, and the definitions of some studies."""

    config: "Config"
    """All of it."""
    defs: "dg.Definitions"
    """Only of the studies that are asked for."""
    store: "Store"
    instance: "dg.DagsterInstance"


def positive_integer(text: str) -> int:
    """Parse the value of an option that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def known_studies(config: "Config", name: str) -> tuple[str, ...]:
    """Return the studies that a name stands for: itself, or the cells of an entry with a `grid`.

    Raises:
        InputError: there is none; the message lists the names.
    """
    studies = config.studies_of(name)
    if not studies:
        raise InputError(f"studies.yaml: no study {name!r}; there are {', '.join(config.study_names) or 'none'}")
    return studies


def known_study(config: "Config", name: str) -> str:
    """Return `name` if there is such a study, for commands that take one.

    Raises:
        InputError: there is none, or it has a `grid`; the message lists the studies.
    """
    studies = known_studies(config, name)
    if name in config.grids:
        raise InputError(
            f"studies.yaml: {name} has a grid; name one of its {len(studies)} studies: {', '.join(studies)}"
        )
    return name


def configuration() -> "Config":
    """Load the configuration, without Dagster."""
    from tokenuq_ml.config.load import load_config

    return load_config(*config_folders(os.environ))


def known_comparison(config: "Config", name: str) -> "ComparisonSpec":
    """Return a comparison by its name.

    Raises:
        InputError: there is none; the message lists the comparisons.
    """
    if name not in config.comparisons:
        there_are = ", ".join(config.comparisons) or "none"
        raise InputError(f"comparisons.yaml: no comparison {name!r}; there are {there_are}")
    return config.comparisons[name]


def known_export(config: "Config", name: str) -> "ExportSpec":
    """Return an export by its name.

    Raises:
        InputError: there is none; the message lists the exports.
    """
    if name not in config.exports:
        raise InputError(f"exports.yaml: no export {name!r}; there are {', '.join(config.exports) or 'none'}")
    return config.exports[name]


@contextlib.contextmanager
def project(
    *studies: str, config: "Config | None" = None, comparisons: Collection[str] = (), exports: Collection[str] = ()
) -> Iterator[Project]:
    """Build the definitions of some studies, and open the Dagster instance.

    Args:
        *studies: their names.
        config: the configuration; by default it is loaded.
        comparisons: comparisons whose definitions are built too, with all their studies.
        exports: exports whose definitions are built too, with their studies.

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
    defs = build_defs(config_of(config, studies, comparisons=comparisons, exports=exports), store.home)
    with dg.DagsterInstance.get() as instance:
        yield Project(config, defs, store, instance)
