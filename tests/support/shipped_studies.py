"""The shipped configuration for tests that go through all of its assets."""

from dataclasses import replace

from tests.support.paths import CONFIG
from tokenuq_ml.config.load import Config, load_config


def with_one_cell_per_grid() -> Config:
    """Return the shipped configuration with the first cell of each grid only: the others have the same assets."""
    config = load_config(CONFIG)
    left_out = {cell for cells in config.grids.values() for cell in list(cells)[1:]}
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
