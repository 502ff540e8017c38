"""A study that measures an ensemble of teachers and selects by it, from the configuration to a trained student."""

import copy

import dagster as dg
import polars as pl
import pytest
import yaml

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.sql import connect, select
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.heavy

OURS = {"select": {"by": "bald_adapter_ensemble", "quantile": 0.25}, "rest": "none"}
KEYS = ["example_id", "position"]


def test_teachers_of_several_seeds_decide_what_a_student_is_trained_on(tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    write_inputs(tmp_path)
    study = copy.deepcopy(CONFIG["studies"][STUDY])
    study |= {"ablations": ["ours"], "evaluation": {"bootstrap": 50}, "curriculum": {"examples": 1, "samples": 2}}
    study["uncertainty"] |= {"estimators": ["adapter_ensemble", "mc_dropout_50"], "members": 2}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
    (tmp_path / "ablations.yaml").write_text(yaml.safe_dump({**CONFIG["ablations"], "ours": OURS}))
    config, store = load_config(tmp_path), Store(tmp_path / "store")
    defs = build_defs(config, store.home, StagesInProcess())
    assert run_study(defs, config, STUDY, [], dg.DagsterInstance.ephemeral(), store) == 0
    estimates = scan("uncertainty_estimates", store.home).collect()
    assert estimates["bald_adapter_ensemble"].min() >= -1e-6 and estimates["bald_adapter_ensemble"].max() > 1e-4
    costs = scan("estimator_costs", store.home).collect()
    assert costs["estimator"].to_list() == ["adapter_ensemble", "mc_dropout_50"]
    with connect(store.home) as connection:
        joined = pl.from_arrow(select(connection, "SELECT * FROM tokens").to_arrow_table())
    assert joined["bald_adapter_ensemble"].null_count() == 0 and joined["bald_laplace"].null_count() == len(joined)
    # In each optimiser batch, the tokens with the highest BALD of the ensemble are selected.
    selections = scan("selections", store.home).collect().with_columns(pl.col("example_id").cast(pl.String))
    for _, rows in selections.join(estimates.cast({"example_id": pl.String}), on=KEYS).group_by("step"):
        count = count_selected(0.25, len(rows))
        chosen = rows.filter("selected")
        assert len(chosen) == count
        assert chosen["bald_adapter_ensemble"].min() >= rows.filter(~pl.col("selected"))["bald_adapter_ensemble"].max()
