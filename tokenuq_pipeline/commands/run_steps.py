"""The job of a study as the processes of its steps build it: from the configuration that `tokenuq run` has read.

They do not read the files again, which a person may edit while the study runs.
"""

import base64
import pickle
from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.automation.study_runner import JobRecipe
from tokenuq_pipeline.build_defs import build_defs


def recipe(config: Config, home: Path, study: str) -> JobRecipe:
    """Return how the processes of steps build the job of a study.

    Args:
        config: of the study, and of what it needs.
        home: the store.
        study: its name.
    """
    text = base64.b64encode(pickle.dumps(config)).decode()
    return JobRecipe(__name__, study_job.__name__, (text, str(home), study))


def study_job(config: str, home: str, study: str) -> dg.JobDefinition:
    """Return the job of a study, whose steps have processes of their own.

    Args:
        config: as `recipe` has written it.
        home: the store.
        study: its name.
    """
    defs = build_defs(pickle.loads(base64.b64decode(config)), Path(home), executor=dg.multiprocess_executor)
    return defs.resolve_job_def(study)
