"""The definitions that Dagster loads: the studies that one works with, each with its job.

`TOKENUQ_STUDIES` adds studies by name. Commands do not import this module: `build_defs.py` builds what they need.
"""

import os

import dagster as dg

from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.shown_studies import shown_config
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.console import compact_logger
from tokenuq_pipeline.runtime.dagster_internals import log_by_default
from tokenuq_pipeline.runtime.launchers.choice import several_models_fit
from tokenuq_pipeline.runtime.paths import config_folders
from tokenuq_pipeline.runtime.step_processes import steps_side_by_side

__all__ = ["build_defs", "chosen_executor", "defs", "load_defs"]


def chosen_executor() -> dg.ExecutorDefinition:
    """Return the executor for the UI's runs, as `$TOKENUQ_EXECUTOR` names it.

    Where several models fit, steps run side by side, in processes of their own. A cluster is not asked: it may start
    after the UI.

    Raises:
        InputError: there is no such executor, or another variable has a wrong value.
    """
    return dg.multiprocess_executor if steps_side_by_side(several_models_fit()) else dg.in_process_executor


def load_defs() -> dg.Definitions:
    """Return the definitions of the studies to show, from the shipped configuration and `$TOKENUQ_CONFIG`.

    Raises:
        InputError: the configuration or a variable is wrong; the message says where and how to fix it.
    """
    try:
        store = open_store()
        config = shown_config(load_config(*config_folders(os.environ)), store)
        return build_defs(config, store.home, executor=chosen_executor())
    except InputError as error:
        # Raised again for a short traceback: `dagster dev` shows all of it, with the message at the end.
        raise InputError(str(error)) from None


log_by_default(compact_logger)
defs = load_defs()
