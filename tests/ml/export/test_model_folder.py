"""What a folder holds besides weights: the study's template and ids, where generation stops, and shards."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support.exported import held_out
from tests.support.model_folders import folder_model
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.export import model_folder
from tokenuq_ml.export.model_folder import check_tokenizer, loaded_logits, stored_dtype, write_folder
from tokenuq_ml.export.trained import logits_of

OWN = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[{% endif %}"


@pytest.fixture
def base(tmp_path):
    model = folder_model(tmp_path / "base")
    model.generation_config = GenerationConfig(eos_token_id=[1, 5], pad_token_id=1)
    model.generation_config.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_template_and_stops_are_those_of_the_base(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = OWN
    model = tiny_model(vocab=len(tokenizer))
    write_folder(model, base, tokenizer, "float32", tmp_path / "out")
    written = check_tokenizer(tmp_path / "out", tokenizer, held_out())
    assert written.chat_template == OWN
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [1, 5]
    assert str(base) not in (tmp_path / "out" / "config.json").read_text()
    # Whoever downloads it is neither offline nor on this machine.
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & settings.keys()


def test_a_generation_that_would_not_stop_is_refused(base, tmp_path):
    GenerationConfig(eos_token_id=7).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    write_folder(tiny_model(vocab=len(tokenizer)), base, tokenizer, "float32", tmp_path / "out")
    with pytest.raises(InputError, match="generation would not stop at '<|im_end|>'.*its eos_token_id is 7"):
        check_tokenizer(tmp_path / "out", tokenizer, held_out())


def test_another_template_is_refused(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    write_folder(tiny_model(vocab=len(tokenizer)), base, tokenizer, "float32", tmp_path / "out")
    (tmp_path / "out" / "chat_template.jinja").write_text(OWN)
    with pytest.raises(InputError, match="chat template is not the one that the study trained with"):
        check_tokenizer(tmp_path / "out", tokenizer, held_out())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shards_are_loaded_with_the_logits_of_the_rounded_weights(base, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(model_folder, "SHARD_SIZE", "20KB")
    model, tokenizer = tiny_model(vocab=len(tiny_tokenizer())), AutoTokenizer.from_pretrained(base)
    write_folder(model, base, tokenizer, dtype, tmp_path / "out")
    shards = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 1 and stored_dtype(tmp_path / "out") == dtype
    rounded = tiny_model(vocab=len(tiny_tokenizer()))
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    for found, expected in zip(
        loaded_logits(tmp_path / "out", held_out()), logits_of(rounded, held_out()), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_missing_tensor_is_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = AutoTokenizer.from_pretrained(base)
    write_folder(tiny_model(vocab=len(tokenizer)), base, tokenizer, "float32", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 tensors, such as model.layers.1.mlp.up_proj.weight"):
        loaded_logits(tmp_path / "out", held_out())
