"""Merged weights against W + s B A in float64; merged models of all kinds of training against base plus adapter."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from tests.support.exported import held_out, trained_adapter, write_tokens
from tests.support.model_folders import folder_model
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.export import trained
from tokenuq_ml.export.bounds import difference
from tokenuq_ml.export.trained import TrainedModel, held_out_texts, logits_of
from tokenuq_ml.models.base_settings import BaseSettings

pytestmark = pytest.mark.slow
TEXTS = held_out()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    folder_model(folder)
    return folder


def fresh():
    return tiny_model(vocab=len(tiny_tokenizer()))


def test_merged_weights_are_base_plus_product(base, tmp_path):
    merged = TrainedModel(base, trained_adapter(fresh(), tmp_path)).merged()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    path = "model.layers.1.mlp.up_proj"
    a_RI, b_OR = (tensors[f"base_model.model.{path}.lora_{side}.weight"].double() for side in "AB")
    expected_OI = fresh().get_submodule(path).weight.double() + 8 / 4 * b_OR @ a_RI
    torch.testing.assert_close(merged.get_submodule(path).weight.double(), expected_OI, atol=1e-6, rtol=1e-6)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def other_adapter(folder, **settings):
    """An adapter with more than LoRA's matrices, whose other weights training has changed."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    model = get_peft_model(fresh(), config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "adapter",
    [
        lambda folder: trained_adapter(fresh(), folder, dora=True),
        lambda folder: other_adapter(folder, modules_to_save=["lm_head"]),
        lambda folder: other_adapter(folder, modules_to_save=["embed_tokens", "lm_head"]),
        lambda folder: other_adapter(folder, modules_to_save=["norm"]),
        lambda folder: other_adapter(folder, rank_pattern={"layers.0.self_attn.q_proj": 3}, use_rslora=True),
    ],
    ids=["dora", "head", "embeddings", "norm", "ranks"],
)
def test_the_merged_model_is_base_plus_adapter(base, tmp_path, adapter):
    model = TrainedModel(base, adapter(tmp_path / "adapter"))
    trained, own_base = model.logits(TEXTS)
    plain = logits_of(PeftModel.from_pretrained(fresh(), tmp_path / "adapter").eval(), TEXTS)
    assert difference(plain, trained).max_abs == 0
    assert (
        difference(logits_of(fresh(), TEXTS), own_base).max_abs == 0 and difference(own_base, trained).relative > 0.01
    )
    # As it is loaded again: an untied head is a tensor of its own.
    model.merged().save_pretrained(tmp_path / "merged")
    again = TrainedModel(base, tmp_path / "merged").logits(TEXTS)[0]
    assert difference(trained, again).relative < 1e-5


def test_full_fine_tuning_has_nothing_to_merge(base, tmp_path):
    model = fresh()
    for parameter in model.parameters():
        parameter.data *= 1.05
    model.save_pretrained(tmp_path)
    trained = TrainedModel(base, tmp_path)
    logits, own_base = trained.logits(TEXTS)
    assert difference(logits_of(model, TEXTS), logits).max_abs == 0
    assert difference(logits_of(fresh(), TEXTS), own_base).max_abs == 0
    assert difference(logits, logits_of(trained.merged(), TEXTS)).max_abs == 0


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_merged_as_it_computes(base, tmp_path, quantization):
    pytest.importorskip("bitsandbytes")
    adapter = trained_adapter(fresh(), tmp_path)
    model = TrainedModel(base, adapter, BaseSettings(quantization=quantization))
    trained, own_base = model.logits(TEXTS)
    found = difference(trained, logits_of(model.merged(), TEXTS))
    assert found.relative < 1e-5
    # Merged into the weights before they were quantised, it is another model.
    other = difference(trained, logits_of(TrainedModel(base, adapter).merged(), TEXTS))
    assert other.relative > 100 * found.relative
    assert difference(own_base, logits_of(fresh(), TEXTS)).relative > 1e-3


def test_what_cannot_be_merged_is_refused_with_its_kind(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(fresh(), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PEFT cannot merge this adapter .PROMPT_TUNING"):
        TrainedModel(base, tmp_path).merged()
    with pytest.warns(UserWarning, match="no bias"):
        other_adapter(tmp_path / "bias", lora_bias=True)
    with pytest.raises(InputError, match="PEFT cannot merge this adapter .LORA.: .*bias"):
        TrainedModel(base, tmp_path / "bias").merged()


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    adapter = trained_adapter(tiny_model(vocab=50), tmp_path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"r": 3}))
    with pytest.raises(InputError, match="PEFT cannot load this adapter on its base model"):
        TrainedModel(base, adapter).merged()


def test_texts_are_held_out_examples_with_a_response(tmp_path, monkeypatch):
    found = held_out_texts(write_tokens(tmp_path))
    assert [one.example_id for one in found] == ["toy/0", "toy/1"]
    logits = logits_of(fresh(), found)
    assert [len(each) for each in logits] == [min(32, sum(one.response_mask)) for one in found]
    # Cut to its end, a text has the logits of that end.
    monkeypatch.setattr(trained, "LONGEST", 9)
    (cut,) = logits_of(fresh(), found[1:])
    end = fresh()(torch.tensor([list(map(int, found[1].input_ids[-9:]))])).logits[0, :-1]
    torch.testing.assert_close(cut, end[-len(cut) :])
    monkeypatch.undo()
    # The row of a token is that before it.
    last = fresh()(torch.tensor([list(map(int, found[1].input_ids))])).logits[0, -2]
    torch.testing.assert_close(logits[1][-1], last)
