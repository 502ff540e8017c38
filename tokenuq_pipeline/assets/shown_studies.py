"""Which studies and comparisons the graph of the UI shows: those that one works with.

A study is shown if it is enabled, if the store holds anything of it, or if `$TOKENUQ_STUDIES` names it. Commands reach
every configured study by name. A comparison is shown if all its studies are, or if the store holds its page;
an export if its study is, or if the store holds it.
"""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import COMPARISONS, EXPORTS

STUDIES_VARIABLE = "TOKENUQ_STUDIES"


class Held(NamedTuple):
    """Names of what the store holds anything of."""

    studies: set[str]
    models: set[str]
    datasets: set[str]
    comparisons: set[str]
    exports: set[str]


def held(store: Store) -> Held:
    """Return what the store holds anything of: a manifest, or a folder of outputs.

    Folders count too, because a stage that is rebuilt has no manifest for a moment, and a process of its run that loads
    the definitions then must find the study.
    """
    manifests, home = store.home / ".manifests", store.home
    return Held(
        studies={path.relative_to(manifests).parts[0] for path in manifests.rglob("*.json")}
        | {path.name.removeprefix("study=") for path in home.glob("[!.]*/study=*")},
        models={path.stem for path in manifests.glob("models/*.json")} | {path.name for path in home.glob("models/*")},
        datasets={path.stem for path in manifests.glob("datasets/*.json")}
        | {path.name.removeprefix("dataset=") for path in home.glob("examples/dataset=*")},
        comparisons={path.stem for path in manifests.glob(f"{COMPARISONS}/*.json")},
        exports={path.stem for path in manifests.glob(f"{EXPORTS}/*.json")},
    )


def shown_config(config: Config, store: Store, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the part of a configuration that the graph shows.

    Models and datasets are shown if a shown study needs them, or if the store holds them.

    Raises:
        InputError: a name in `$TOKENUQ_STUDIES` matches no study.
    """
    content = held(store)
    studies = _shown(config, content, environment)
    return config_of(
        config,
        studies,
        [name for name in config.models if name in content.models],
        [name for name in config.datasets if name in content.datasets],
        _shown_comparisons(config, content, studies),
        _shown_exports(config, content, studies),
    )


def shown_studies(config: Config, store: Store, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the shown studies, in the order of the configuration.

    Raises:
        InputError: a name in `$TOKENUQ_STUDIES` matches no study.
    """
    return _shown(config, held(store), environment)


def _shown(config: Config, content: Held, environment: Mapping[str, str]) -> list[str]:
    names = named_studies(environment.get(STUDIES_VARIABLE, ""), [*config.studies, *config.grids])
    named = {study for name in names for study in config.studies_of(name)}
    return [name for name, study in config.studies.items() if study.enabled or name in named or name in content.studies]


def shown_comparisons(config: Config, store: Store, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the shown comparisons, in the order of the configuration.

    Raises:
        InputError: a name in `$TOKENUQ_STUDIES` matches no study.
    """
    content = held(store)
    return _shown_comparisons(config, content, _shown(config, content, environment))


def _shown_comparisons(config: Config, content: Held, studies: Collection[str]) -> list[str]:
    return [
        name
        for name, comparison in config.comparisons.items()
        if name in content.comparisons or set(comparison.studies) <= set(studies)
    ]


def shown_exports(config: Config, store: Store, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the shown exports, in the order of the configuration.

    Raises:
        InputError: a name in `$TOKENUQ_STUDIES` matches no study.
    """
    content = held(store)
    return _shown_exports(config, content, _shown(config, content, environment))


def _shown_exports(config: Config, content: Held, studies: Collection[str]) -> list[str]:
    return [name for name, spec in config.exports.items() if name in content.exports or spec.study in studies]


def named_studies(text: str, studies: Iterable[str]) -> set[str]:
    """Return the studies that a list of names and globs stands for, separated by commas or spaces.

    Raises:
        InputError: one of them matches no study; the message lists the nearest names.
    """
    studies, named = list(studies), set[str]()
    for pattern in text.replace(",", " ").split():
        found = {name for name in studies if fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, studies, n=3)
            listed = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(studies) or 'none'}"
            raise InputError(f"{STUDIES_VARIABLE}: {pattern!r} matches no study in studies.yaml; {listed}")
        named |= found
    return named


def config_of(
    config: Config,
    studies: Collection[str],
    models: Collection[str] = (),
    datasets: Collection[str] = (),
    comparisons: Collection[str] = (),
    exports: Collection[str] = (),
) -> Config:
    """Return the configuration of some studies, with the models and datasets that they need.

    Args:
        config: all of it.
        studies: their names; others are left out.
        models: further models to keep.
        datasets: further datasets to keep, with those that they are made of.
        comparisons: comparisons to keep, with their studies.
        exports: exports to keep, with their studies.
    """
    compared = {name: spec for name, spec in config.comparisons.items() if name in comparisons}
    exported = {name: spec for name, spec in config.exports.items() if name in exports}
    needed = {*studies, *(study for spec in compared.values() for study in spec.studies)}
    needed |= {spec.study for spec in exported.values()}
    kept = {name: spec for name, spec in config.studies.items() if name in needed}
    needed_models = {name for study in kept.values() for name in config.models_of(study)} | set(models)
    needed_datasets = {name for study in kept.values() for name in config.datasets_of(study)}
    needed_datasets |= {part for name in datasets for part in config.with_sources(name)}
    return Config(
        {name: spec for name, spec in config.models.items() if name in needed_models},
        {name: spec for name, spec in config.datasets.items() if name in needed_datasets},
        kept,
        config.ablations,
        compared,
        exports=exported,
    )
