"""The definitions that a test's `dagster dev` loads: the toy study of `$TOY_FOLDER` on fake stages in children."""

import os
from pathlib import Path

from tests.support.toy_pipeline import Toy, config_with
from tokenuq_pipeline.automation import sensors
from tokenuq_pipeline.definitions import build_defs, chosen_executor
from tokenuq_pipeline.runtime.launcher import StageLauncher

# A person can wait half a minute for a data file to be seen; a test need not.
sensors.FILES_INTERVAL_S = sensors.WAVE_INTERVAL_S = 5
folder = Path(os.environ["TOY_FOLDER"])
defs = build_defs(
    config_with(folder, quantile=float(os.environ.get("TOY_QUANTILE", "0.25"))),
    Toy(folder / "toy").store.home,
    StageLauncher(package="fake_entrypoints"),
    chosen_executor(),
)
