"""Plans of shipped studies for a tiny model, without the hub."""

from tests.support import tiny_models
from tests.support.paths import ROOT
from tokenuq_ml.config.load import load_config
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.machine import Machine
from tokenuq_ml.costs.planner import Planner
from tokenuq_ml.costs.sources import ModelSizes

CONFIG = load_config(ROOT / "config")
MACHINE = Machine(1e11, "cpu", "bfloat16", 2, "test", 512)
TINY = tiny_models.tiny_model("llama").config.to_dict()
"""The configuration of a tiny Llama."""


def tiny_planner(study="quickstart", model_config=TINY, measured=None, machine=MACHINE, fresh=frozenset(), **changes):
    """Return the planner of a shipped study, with some fields changed; a `model_config` of None: sizes not known."""
    spec = CONFIG.studies[study].model_copy(update=changes)
    sizes = None
    if model_config is not None:
        softcapped = bool(model_config.get("final_logit_softcapping"))
        sizes = ModelSizes(Architecture.from_config(model_config), softcapped, 2, "test")
    return Planner(CONFIG, spec, {spec.model: sizes}, measured or {}, machine, fresh)
