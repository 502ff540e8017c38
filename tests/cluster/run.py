"""`python -m tests.cluster.run INPUTS STUDY [ASSET ...]` is `tokenuq run` of a study, or of some of its assets.

Imports no more than `tokenuq` does: the process of each step imports this module again.
"""

import os
import sys
from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import load_config
from tokenuq_pipeline.assets.shown_studies import config_of
from tokenuq_pipeline.automation.study_runner import StudyRunner
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.make_assets import bring_up_to_date, quiet_streams
from tokenuq_pipeline.commands.run_steps import recipe
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.console import CONSOLE
from tokenuq_pipeline.runtime.paths import dagster_home


def main() -> int:
    """Bring the study up to date, or some of its assets, and return the exit code."""
    folder, study, *names = sys.argv[1:]
    dagster_home()
    config, store = load_config(Path(folder)), open_store(os.environ["TOKENUQ_HOME"])
    with dg.DagsterInstance.get() as instance:
        runner = StudyRunner(build_defs(config, store.home), config, study, instance, store, CONSOLE)
        keys = {dg.AssetKey(name.split("/")) for name in names} if names else runner.targets([])
        while names and (more := {parent for key in keys for parent in runner.parents[key]} - keys):
            keys |= more
        with quiet_streams(CONSOLE):
            code, errors = bring_up_to_date(runner, keys, not names, recipe(config_of(config, [study]), store, study))
    print("\n".join(errors))
    return code


if __name__ == "__main__":
    sys.exit(main())
