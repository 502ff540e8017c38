"""The shipped configuration for tests that go through all of its assets."""

from dataclasses import replace

from tests.support.paths import CONFIG
from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config, load_config

OF_FAMILY = 2
"""Ablations that are kept of each family of a study with `seeds` or `sweep`."""


def one_of_each() -> Config:
    """Return the shipped configuration with the first cell of each grid, and the first study of each comparison.

    The others of a grid have the same assets, and those of a comparison differ in model, data and number of seeds.
    Of the seeds and settings that a study adds to its families, two are kept.
    """
    config = load_config(CONFIG)
    left_out = {cell for cells in config.grids.values() for cell in list(cells)[1:]}
    datasets = {config.studies[name].dataset for name in left_out}
    first = {spec.studies[0] for spec in config.comparisons.values()}
    left_out |= {study for spec in config.comparisons.values() for study in spec.studies if study not in first}
    compared = {
        name: spec.model_copy(update={"studies": tuple(one for one in spec.studies if one not in left_out)})
        for name, spec in config.comparisons.items()
    }
    return replace(
        config,
        datasets={name: spec for name, spec in config.datasets.items() if name not in datasets},
        studies={name: _with_few(study, config) for name, study in config.studies.items() if name not in left_out},
        comparisons=compared,
        grids={},
    )


def _with_few(study: StudySpec, config: Config) -> StudySpec:
    if study.seeds is None and study.sweep is None:
        return study
    families: dict[str, list[str]] = {}
    for name in study.ablations:
        families.setdefault(config.ablations[name].family, []).append(name)
    few = tuple(name for names in families.values() for name in names[:OF_FAMILY])
    return study.model_copy(update={"ablations": few})
