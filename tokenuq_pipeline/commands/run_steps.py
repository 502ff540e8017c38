"""The job of a study as the processes of its steps build it: from the configuration that `tokenuq run` has read.

They do not read the files again, which a person may edit while the study runs.
"""

import base64
import pickle

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.automation.study_runner import JobRecipe
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime.bucket_store import address_of, open_store
from tokenuq_pipeline.runtime.store import Store


def recipe(config: Config, store: Store, study: str) -> JobRecipe:
    """Return how the processes of steps build the job of a study.

    Args:
        config: of the study, and of what it needs.
        store: the store.
        study: its name.
    """
    text = base64.b64encode(pickle.dumps(config)).decode()
    return JobRecipe(__name__, study_job.__name__, (text, address_of(store), study))


def study_job(config: str, address: str, study: str) -> dg.JobDefinition:
    """Return the job of a study, whose steps have processes of their own.

    Args:
        config: as `recipe` has written it.
        address: of the store, which a process has to open before it knows that it is in a bucket.
        study: its name.
    """
    home = open_store(address).home
    defs = build_defs(pickle.loads(base64.b64decode(config)), home, executor=dg.multiprocess_executor)
    return defs.resolve_job_def(study)
