"""The YAML examples of the pages are valid configuration."""

import pytest
import yaml

from tests.support.markdown import fenced_blocks
from tests.support.paths import ROOT
from tokenuq_ml.config import EvaluationSpec, ModelSpec, PrecisionSpec
from tokenuq_ml.config.load import load_config


def blocks(page):
    return fenced_blocks((ROOT / "docs" / page).read_text(), "yaml")


@pytest.mark.parametrize(
    ("page", "file", "names"),
    [
        ("ablations.md", "ablations", ["paper_top33"]),
        ("data.md", "datasets", ["my_chats", "my_gsm8k"]),
        ("evaluations.md", "studies", ["my_study"]),
        ("studies.md", "studies", ["my_study", "strict_study"]),
        ("tracking.md", "studies", ["my_tracked_study"]),
    ],
)
def test_entries_can_be_added_to_the_shipped_ones(page, file, names, tmp_path):
    added = {}
    for block in blocks(page):
        added |= yaml.safe_load(block)
    (tmp_path / f"{file}.yaml").write_text(yaml.safe_dump({name: added[name] for name in names}))
    entries = getattr(load_config(ROOT / "config", tmp_path), file)
    assert set(names) <= set(entries)


def test_every_evaluation_on_its_page_is_valid(tmp_path):
    found = []
    for number, block in enumerate(blocks("evaluations.md")):
        entry = yaml.safe_load(block)
        if "my_study" not in entry:
            found += EvaluationSpec(**entry["evaluation"]).answered or [key for key in entry["evaluation"]]
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "studies.yaml").write_text(block)
        evaluation = load_config(ROOT / "config", folder).studies["my_study"].evaluation
        found += [key for key in EvaluationSpec.model_fields if getattr(evaluation, key) is not None]
    assert {"ifeval", "ifbench", "gsm8k", "alpaca_eval", "pairwise", "lm_eval"} <= set(found)


def test_the_model_entries_and_the_precision_are_valid():
    *models, precision = blocks("models.md")
    assert len(models) == 3
    for block in models:
        for name, entry in yaml.safe_load(block).items():
            assert ModelSpec(name=name, **entry).source == entry["source"]
    assert PrecisionSpec(**yaml.safe_load(precision)["precision"]).tables == "float32"


def test_the_table_of_shipped_studies_names_them():
    text = (ROOT / "docs/studies.md").read_text()
    config = load_config(ROOT / "config")
    families = ("alpaca_", "sharegpt_", "gsm8k_")
    named = [name for name in config.study_names if not name.startswith(families) or name.endswith("_smollm2")]
    assert not [name for name in named if f"`{name}`" not in text]
