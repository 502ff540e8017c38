"""Commands on an entry with a `grid`: its name stands for the studies of all cells."""

import argparse
import json

import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.config.language import LanguageChanges
from tokenuq_ml.costs.machine import Machine
from tokenuq_ml.errors import InputError
from tokenuq_pipeline import cli
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.shown_studies import shown_studies
from tokenuq_pipeline.commands import plan, prune, run, status
from tokenuq_pipeline.commands.common import known_studies, known_study
from tokenuq_pipeline.commands.plan_text import grid_as_text

CELLS = ("cells_noise0", "cells_noise0p5")
SIZES = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 4, "vocab_size": 97, "dtype": "bfloat16"}


def grid_config():
    """The toy study, and two cells that differ from it by name."""
    config = toy_config()
    config.models["tiny"] = ModelSpec(name="tiny", source="path", path="/nowhere", config=SIZES)
    for cell in CELLS:
        config.studies[cell] = config.studies[STUDY].model_copy(update={"name": cell, "enabled": False})
    config.grids["cells"] = {cell: LanguageChanges(noise=0.0) for cell in CELLS}
    return config


def test_the_name_of_a_grid_stands_for_its_cells(tmp_path):
    config, store = grid_config(), Toy(tmp_path).store
    assert known_studies(config, "cells") == CELLS and known_studies(config, CELLS[1]) == CELLS[1:]
    with pytest.raises(InputError, match="no study 'none'; there are study, cells$"):
        known_studies(config, "none")
    with pytest.raises(InputError, match="cells has a grid; name one of its 2 studies: cells_noise0, cells_noise0p5"):
        known_study(config, "cells")
    options = argparse.Namespace(all=False, study=["cells", CELLS[0]], comparison=None)
    assert status._asked(options, config, store) == list(CELLS)
    assert shown_studies(config, store, {}) == [STUDY]
    assert shown_studies(config, store, {"TOKENUQ_STUDIES": "cells"}) == [STUDY, *CELLS]


@pytest.mark.parametrize(("codes", "made"), [((0, 0), 2), ((1, 0), 1)])
def test_a_run_makes_one_cell_after_another_and_stops_at_the_first_that_fails(
    monkeypatch, tmp_path, capfd, codes, made
):
    calls = []

    def run_one(config, study, ablations, ignore_disk_space, shows_report, output):
        calls.append((study, ablations, shows_report))
        output.results.append({"made": study, "exit_code": codes[len(calls) - 1]})
        return codes[len(calls) - 1]

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(run, "configuration", grid_config)
    monkeypatch.setattr(run, "run_one", run_one)
    monkeypatch.setattr(run, "report_as_json", lambda store, study: {"page": study})
    options = cli.parser().parse_args(["run", "--study", "cells", "--ablation", "mle", "--json"])
    assert run.run_command(options) == codes[made - 1]
    assert calls == [(cell, ["mle"], False) for cell in CELLS[:made]]
    # A list, of what was run.
    assert json.loads(capfd.readouterr().out) == [
        {"study": cell, "exit_code": code, "report": None if code else {"page": cell}}
        for cell, code in zip(CELLS[:made], codes, strict=False)
    ]


def test_a_plan_counts_what_cells_share_once(monkeypatch, tmp_path):
    measured = []

    def measure(*precisions):
        measured.append(precisions)
        return Machine(1e9, "cpu", "bfloat16", 2, "test", 512)

    monkeypatch.setattr(plan, "measure_machine", measure)
    config, store = grid_config(), Toy(tmp_path).store
    states = {name: "missing" for name in assets_by_name(config)}
    first, second = plan.make_plans(config, CELLS, states, store)
    assert len(measured) == 1
    shared = {row["asset"] for row in first.stages} & {row["asset"] for row in second.stages}
    assert shared == {"models/tiny", "datasets/toy", "datasets/extra"}
    assert first.totals["stages"] == second.totals["stages"] + len(shared)
    text = grid_as_text("cells", [first, second], [])
    assert text.startswith("cells: 2 studies with one base model\n") and f"study {CELLS[0]}: tiny" in text
    (total,) = [line for line in text.splitlines()[:6] if line.startswith("total")]
    assert f"{first.totals['tokens'] + second.totals['tokens']:,}" in total


def test_what_is_pruned_of_a_grid_is_that_of_its_cells(monkeypatch, tmp_path):
    class Pruner:
        def removable(self, store, configured, study):
            return [study]

    monkeypatch.setattr(prune, "configuration", grid_config)
    store = Toy(tmp_path).store
    found = {name: prune._found(store, Pruner(), name) for name in ("cells", CELLS[0], "gone", None)}
    assert found == {"cells": list(CELLS), CELLS[0]: [CELLS[0]], "gone": ["gone"], None: [None]}
