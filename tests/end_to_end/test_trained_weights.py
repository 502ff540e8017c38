"""The tiny study on a quantised base, with a DoRA adapter, with no adapter at all, and with keys that save memory."""

import copy

import dagster as dg
import polars as pl
import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of

pytestmark = pytest.mark.heavy
KINDS = {
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "dora": {"train": {"adapter": "dora"}},
    "none": {"train": {"adapter": "none", "learning_rate": 1e-3}, "uncertainty": {"attention_dropout": 0.1}},
    "fitted": {
        "attention": "eager",
        "train": {"gradient_checkpointing": True, "optimizer": "adamw_8bit", "batching": "pack", "micro_batch_size": 2},
    },
}


def changed(kind: str) -> dict:
    study = copy.deepcopy(CONFIG["studies"][STUDY])
    for key, value in KINDS[kind].items():
        study[key] = {**study.get(key, {}), **value} if isinstance(value, dict) else value
    if kind == "none":
        del study["train"]["lora"]
    return study | {"ablations": ["paper_top25"]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_study_is_made_and_made_once(kind, tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    write_inputs(tmp_path)
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({STUDY: changed(kind)}))
    config, store = load_config(tmp_path), Store(tmp_path / "store")
    instance = dg.DagsterInstance.ephemeral()
    defs = build_defs(config, store.home, StagesInProcess())
    assert run_study(defs, config, STUDY, [], instance, store) == 0
    assert bool(list(store.home.rglob("adapter_config.json"))) == (kind != "none")
    assert bool(list(store.home.rglob("head.safetensors"))) == (kind == "none")
    log = scan("training_log", store.home).collect()
    means = log.group_by("ablation").agg(pl.col("loss").sort_by("step").first().alias("first"), pl.col("loss").min())
    assert (means["loss"] < means["first"]).all()
    uncertainty = scan("token_uncertainty", store.home).collect()
    assert uncertainty["bald"].max() > 1e-4
    graph = defs.resolve_asset_graph()
    executions = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(graph.asset_check_keys))
    blocking = {key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert {executions[key].status.value for key in blocking} == {"SUCCEEDED"}
    before = manifests(store)
    assert run_study(defs, config, STUDY, [], instance, store) == 0
    assert manifests(store) == before
    # What the teacher is loaded as: an adapter of PEFT, or a model of transformers.
    assert loaded_teacher(store, kind).training is False


def manifests(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (store.home / ".manifests").rglob("*.json")}


def loaded_teacher(store: Store, kind: str):
    folder = store.home / places_of(f"{STUDY}/baseline_teacher")["adapter"]
    if kind == "none":
        return AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(store.home / "models" / "tiny_llama")
    return PeftModel.from_pretrained(base, folder)
