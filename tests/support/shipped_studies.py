"""The shipped configuration for tests that go through all of its assets."""

from dataclasses import replace

from tests.support.paths import CONFIG
from tokenuq_ml.config.load import Config, load_config


def one_of_each() -> Config:
    """Return the shipped configuration with the first cell of each grid, and the first study of each comparison.

    The others of a grid have the same assets, and those of a comparison differ in model, data and number of seeds.
    """
    config = load_config(CONFIG)
    left_out = {cell for cells in config.grids.values() for cell in list(cells)[1:]}
    first = {spec.studies[0] for spec in config.comparisons.values()}
    left_out |= {study for spec in config.comparisons.values() for study in spec.studies if study not in first}
    datasets = {config.studies[name].dataset for name in left_out}
    compared = {
        name: spec.model_copy(update={"studies": tuple(one for one in spec.studies if one not in left_out)})
        for name, spec in config.comparisons.items()
    }
    return replace(
        config,
        datasets={name: spec for name, spec in config.datasets.items() if name not in datasets},
        studies={name: study for name, study in config.studies.items() if name not in left_out},
        comparisons=compared,
        grids={},
    )
