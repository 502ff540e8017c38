"""docs/ablations.md: its example runs as written, its tables name what there is."""

import re
import sys

import polars as pl
import pytest
import torch
import yaml

from tests.support.paths import ROOT
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import training_setup
from tokenuq_ml.config import registry
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.sweeps import expand
from tokenuq_ml.training.token_columns import TokenColumns
from tokenuq_ml.training.trainer import train

TEXT = (ROOT / "docs/ablations.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
YAML = [block for language, block in BLOCKS if language == "yaml"]
(PYTHON,) = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text(PYTHON)
    (tmp_path / "ablations.yaml").write_text(YAML[-1])
    monkeypatch.setenv("TOKENUQ_CONFIG", str(tmp_path))
    yield tmp_path
    sys.modules.pop("surprise", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


def test_the_example_trains_as_it_says(own, tmp_path):
    ablation = load_config(ROOT / "config", own).ablations["unexplained_top25"]
    assert ablation.selection_kind == "dynamic" and ablation.tables_read == ("token_losses",)
    s = training_setup(ablation, epochs=1)
    rows = [(e.example_id, p) for e in s.examples for p in e.positions]
    draw = torch.Generator().manual_seed(0)
    table = pl.DataFrame(
        {
            "example_id": [name for name, _ in rows],
            "position": pl.Series([position for _, position in rows], dtype=pl.Int32),
            "entropy": torch.rand(len(rows), generator=draw).numpy() * 5,
            "base_loss": torch.rand(len(rows), generator=draw).numpy() * 5,
        }
    )
    s.columns = TokenColumns(ablation.columns_read, {"token_losses": table}, s.examples)
    recorder = train(tiny_peft(), s, tmp_path / "w", RecordingReporter(), "x")
    seen = recorder.selections().join(table, on=["example_id", "position"])
    for (_,), step in seen.group_by("step"):
        score = step["loss"] - step["entropy"]
        assert score.filter(step["selected"]).min() >= score.filter(~step["selected"]).max()


def test_the_sweep_gives_the_names_that_the_text_says():
    made = expand("paper_top", yaml.safe_load(YAML[1])["paper_top"])
    assert list(made) == ["paper_top10", "paper_top10_s1", "paper_top25", "paper_top25_s1"]


def test_every_name_is_explained():
    for name in (
        *registry.SELECTORS,
        *registry.OBJECTIVES,
        *registry.COLUMNS,
        *registry.STUDENT_COLUMNS,
        *(setting for objective in registry.OBJECTIVES.values() for setting in objective.settings),
        *registry.DIVERGENCES,
        *registry.TEACHERS,
    ):
        assert f"`{name}`" in TEXT, name
