"""The model card: its figures by hand, licences, metadata, no path of this machine, and entries that make it again."""

import numpy as np
import polars as pl
import pytest
import yaml
from huggingface_hub import ModelCard

from tests.support.exported import written_config
from tests.support.tiny_study import STUDY
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.export.card import CardFacts, model_card
from tokenuq_ml.export.card_entries import entries
from tokenuq_ml.export.card_figures import as_table, figures
from tokenuq_ml.stages.versions import ablation_fields, export_fields, study_fields
from tokenuq_ml.tables.parquet import write_table

NC, SA = "cc-by-nc-4.0", "cc-by-sa-3.0"


def fields_of(config, ablation="paper_top25", **spec):
    return export_fields(config, ExportSpec(name="e", study=STUDY, ablation=ablation, **spec))


def licensed(folder, model=None, sums=None):
    """The tiny study's configuration with licences."""
    written_config(folder)
    for kind, name, license in (("models", "tiny_llama", model), ("datasets", "sums", sums)):
        entries = yaml.safe_load((folder / f"{kind}.yaml").read_text())
        entries[name] |= {"license": license} if license else {}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def write_evaluation(folder, row, correct):
    """One metric of four examples, each with ten tokens, and one without direction."""
    values = np.array(correct, float)
    common = {"dataset": "sums", "split": "test", "metric": "token_accuracy"}
    example_rows = [
        {**common, "example_id": f"sums/{i}", "numerator": x, "denominator": 10.0} for i, x in enumerate(values)
    ]
    value = values.sum() / 40
    one = {"family": row, "seed": 0, **common, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 4}
    rows = [{**one, "higher_is_better": True}, {**one, "metric": "loss_change", "higher_is_better": None}]
    tables = {}
    for table, content in (("evaluations", rows), ("evaluation_examples", example_rows)):
        tables[f"{table}/{row}"] = str(folder / table / row)
        frame = pl.DataFrame(content).with_columns(pl.selectors.integer().cast(pl.Int32))
        write_table(frame, table, tables[f"{table}/{row}"], spec_hash="s", code_version="1")
    return tables


def test_figures_are_the_tables_values_and_paired_differences(tmp_path):
    config = written_config(tmp_path / "config")
    tables = write_evaluation(tmp_path, "paper_top25", [8, 9, 7, 8]) | write_evaluation(tmp_path, "base", [6, 7, 5, 6])
    (found,) = figures(tables, "paper_top25", config.studies[STUDY].evaluation)
    assert found.own == pytest.approx((0.8, 0.7, 0.9)) and found.base == pytest.approx(0.6)
    # Each example differs by the same amount, so every paired resample does.
    assert found.difference == pytest.approx((0.2, 0.2, 0.2))
    row = as_table([found], 0.95).splitlines()[2]
    assert row == ("| token_accuracy (higher is better) | sums, test | 4 | 0.8 [0.7, 0.9] | 0.6 | +0.2 [+0.2, +0.2] |")
    alone = figures(
        {name: path for name, path in tables.items() if "base" not in name},
        "paper_top25",
        config.studies[STUDY].evaluation,
    )
    assert alone[0].base is None and "not evaluated" in as_table(alone, 0.95)
    assert figures({}, "paper_top25", config.studies[STUDY].evaluation) == []


@pytest.mark.parametrize(
    "model, data, license, words",
    [
        ("apache-2.0", "mit", "apache-2.0", "terms of the base model and of the training data apply"),
        ("apache-2.0", NC, "other", f"Restricted use: `sums` ({NC})"),
        ("apache-2.0", None, "other", "So is the licence of `sums`"),
        (None, "mit", "other", "licence of the base model is unknown"),
        ("my own terms", SA, "other", "| base model | `tiny_llama` | my own terms |"),
    ],
)
def test_licences_are_named_and_unknown_ones_are_said_to_be(tmp_path, model, data, license, words):
    text = model_card(fields_of(licensed(tmp_path, model, data)), CardFacts("bfloat16", "Equal.", "merged"))
    card = ModelCard(text)
    assert card.data.license == license and (card.data.license_name is None) == (license != "other")
    assert words in text and f"| training data | `sums` | {data or 'unknown'} |" in text


def test_licences_change_no_version(tmp_path):
    plain, named = written_config(tmp_path / "a"), licensed(tmp_path / "a", "mit", NC)
    assert named.models["tiny_llama"].license == "mit" and named.datasets["sums"].license == NC
    assert plain.models["tiny_llama"].fields() == named.models["tiny_llama"].fields()
    assert plain.datasets["sums"].fields() == named.datasets["sums"].fields()
    assert fields_of(plain) != fields_of(named)


def test_the_entries_make_the_same_versions(tmp_path):
    config = written_config(tmp_path / "config", seeds=2)
    folder = tmp_path / "again"
    (folder / "llama").mkdir(parents=True)
    for name, text in entries(fields_of(config, "mle_s1")).items():
        (folder / name).write_text(text)
    again = load_config(folder)
    study, own = again.studies[STUDY], config.studies[STUDY]
    assert list(study.ablations) == ["mle_s1"] and again.models.keys() == config.models.keys()
    for stage in ("student", "curriculum"):
        versions = [ablation_fields(one, one.studies[STUDY], one.ablations["mle_s1"], stage) for one in (config, again)]
        assert versions[0] == versions[1]
    assert study_fields(again, study, "baseline_teacher") == study_fields(config, own, "baseline_teacher")


def test_no_folder_of_this_machine_is_published(tmp_path):
    config = written_config(tmp_path)
    text = model_card(fields_of(config), CardFacts("bfloat16", "Equal.", "merged"))
    assert str(tmp_path) not in text and "path: llama\n" in text and "path: sums.jsonl\n" in text


def test_the_card_says_how_it_was_made(tmp_path):
    provenance = {"git_commit": "abc123", "git_dirty": True, "made_at": "2026-01-02", "packages": {"torch": "2.13"}}
    origin = {"data_version": "d1", "code_version": "3-x", "metrics": {"steps": 7}, "provenance": provenance}
    text = model_card(fields_of(written_config(tmp_path)), CardFacts("float16", "Equal.", "m", (), origin))
    for words in (
        "The top 25% of tokens by loss (dynamic, per batch): trained by mle",
        "KL(q_n \\parallel p_n)",
        "| optimiser steps | 7 |",
        "| LoRA rank, alpha | 4, 8 |",
        "data version `d1`, code version `3-x`",
        "commit of the project: `abc123` with uncommitted changes",
        "packages: torch 2.13",
        "tokenuq run --study tiny --ablation paper_top25",
        "tokenuq export tiny/paper_top25 --merge model --dtype float16",
        "This model was not evaluated.",
    ):
        assert words in text


def test_a_teacher_and_a_gguf_file_have_their_own_words(tmp_path):
    config = written_config(tmp_path, quantization="nf4")
    text = model_card(fields_of(config, "baseline_teacher", kind="gguf"), CardFacts("float16", "Equal.", "x.gguf"))
    assert "llama-cli --model x.gguf" in text and "This is the baseline teacher of the study `tiny`" in text
    assert "its base model was quantised to nf4" in text and "ablations.yaml" not in text
    assert "tokenuq run --study tiny\n" in text and "--gguf x.gguf" in text and "gguf" in ModelCard(text).data.tags
    assert "Maximum likelihood on every response token" in text
