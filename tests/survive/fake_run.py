"""`tokenuq run` of the toy study on fake stages, each in a child process: a run that takes seconds.

`python -m tests.survive.fake_run FOLDER`. For the short trials in the suite.
"""

import sys
from pathlib import Path

from tests.support.toy_pipeline import STUDY, Toy, config_with
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.paths import store_home
from tokenuq_pipeline.runtime.store import Store


def main() -> int:
    """Bring the study up to date and return the exit code."""
    toy, store = Toy(Path(sys.argv[1])), Store(store_home())
    # One file of data for all trials: a file at another path is another dataset.
    config = config_with(toy.folder.parent)
    defs = build_defs(config, store.home, StageLauncher(package="fake_entrypoints"))
    with toy.instance() as instance:
        return run_study(defs, config, STUDY, [], instance, store)


if __name__ == "__main__":
    sys.exit(main())
