"""The stage that exports: what it writes, that plain transformers loads it with equal logits, and what it refuses."""

import stat
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.exported import Exporting, held_out
from tests.support.tiny_study import STUDY
from tokenuq_ml.errors import InputError
from tokenuq_ml.export import llama_cpp
from tokenuq_ml.export.gguf_file import write_gguf
from tokenuq_ml.stages import export_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exporting(tmp_path_factory):
    return Exporting(tmp_path_factory.mktemp("exporting"))


@pytest.fixture(autouse=True)
def no_converter(monkeypatch):
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)


def logits(model):
    return [model(torch.tensor([list(text.input_ids)])).logits for text in held_out()]


@torch.no_grad()
def test_plain_transformers_loads_the_folder_with_the_logits_of_base_plus_adapter(exporting, tmp_path):
    reporter, result = exporting.run(tmp_path / "out", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(exporting.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, exporting.weights).eval()
    for found, expected in zip(logits(merged), logits(adapted), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with adapted.disable_adapter():
        assert (logits(adapted)[0] - logits(merged)[0]).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    check = result.checks["logits_match"]
    assert check.passed and check.figures["relative_difference"] == result.metrics["relative_difference"] < 1e-4
    assert result.metrics["dtype"] == "float32" and "equals base model plus adapter" in reporter.lines[-1]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers" and "| optimiser steps | 7 |" in card.text
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {
        stat.S_IMODE((tmp_path / "out" / "config.json").stat().st_mode)
    }


def test_the_data_version_is_that_of_the_content(exporting, tmp_path):
    versions = [
        exporting.run(tmp_path / str(number), dtype=dtype)[1].data_version
        for number, dtype in enumerate(("bfloat16", "bfloat16", "float16"))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_a_gguf_file_replaces_the_folder_that_it_was_made_from(exporting, tmp_path):
    _, result = exporting.run(tmp_path / "out", kind="gguf", dtype="float16")
    name = f"{STUDY}-paper_top25-float16.gguf"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", name]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=name, dtype=torch.float32)
    plain = exporting.run(tmp_path / "plain", dtype="float16") and AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=torch.float32
    )
    for found, expected in zip(logits(loaded), logits(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert result.metrics["kind"] == "gguf" and f"llama-cli --model {name}" in (tmp_path / "out/README.md").read_text()


def converter(folder: Path, monkeypatch, code: str) -> None:
    """Install a converter of llama.cpp that is ours."""
    (folder / llama_cpp.SCRIPT).write_text(code)
    monkeypatch.setenv(llama_cpp.VARIABLE, str(folder))


def test_llama_cpps_converter_is_used_and_its_file_compared(exporting, tmp_path, monkeypatch):
    exporting.run(tmp_path / "merged", dtype="float16")
    for name, folder in (("right", tmp_path / "merged"), ("wrong", exporting.base)):
        write_gguf(folder, tmp_path / f"{name}.gguf", "float16", name, None)
    copy = "import shutil, sys; shutil.copy({!r}, sys.argv[3])"
    converter(tmp_path, monkeypatch, copy.format(str(tmp_path / "right.gguf")))
    reporter, _ = exporting.run(tmp_path / "out", kind="gguf", dtype="float16")
    assert any(llama_cpp.SCRIPT in line for line in reporter.lines)
    # A converter that writes another model, that of the base, is found.
    converter(tmp_path, monkeypatch, copy.format(str(tmp_path / "wrong.gguf")))
    with pytest.raises(InputError, match=r"\.gguf does not give the logits of base model plus adapter"):
        exporting.run(tmp_path / "wrong", kind="gguf", dtype="float16")


def test_a_merge_that_loses_the_adapter_is_refused(exporting, tmp_path, monkeypatch):
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(InputError, match="does not give the logits of base model plus adapter.*Nothing is written"):
        exporting.run(tmp_path / "out")


def test_a_training_that_bfloat16_rounds_off_is_refused_in_it_and_not_in_float32(tmp_path):
    weak = Exporting(tmp_path / "weak", scale=1e-4)
    with pytest.raises(InputError, match="most of the training would be lost.*use a wider --dtype"):
        weak.run(tmp_path / "narrow", dtype="bfloat16")
    assert weak.run(tmp_path / "wide", dtype="float32")[1].checks["logits_match"].passed


def test_what_no_gguf_holds_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    gpt2 = Exporting(tmp_path, "gpt2")
    monkeypatch.setattr(export_model.TrainedModel, "logits", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(InputError, match="architecture gpt2 is not among"):
        gpt2.run(tmp_path / "out", kind="gguf")


def test_gpt2_whose_weights_are_transposed_is_merged(tmp_path):
    gpt2 = Exporting(tmp_path, "gpt2", dora=True)
    assert gpt2.run(tmp_path / "out", dtype="float32")[1].metrics["relative_difference"] < 1e-4
