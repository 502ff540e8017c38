"""Conversion: weights, chat templates, ends of turn, the check of the head, and the data version."""

import json

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from tests.support.model_folders import folder_model, folder_spec, run_conversion
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_architecture
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.load import load_model, load_tokenizer

CONFIG = ROOT / "config"


def test_a_folder_is_converted_and_loads(tmp_path):
    original = folder_model(tmp_path / "in")
    figures = convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    loaded, numerics = load_model(tmp_path / "out", "float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    assert figures["parameters"] == sum(p.numel() for p in original.parameters())
    assert figures["chat_template"] == "the model's own" and figures["end_of_turn"] == "<|im_end|>"
    assert load_tokenizer(tmp_path / "out").chat_template == CHATML
    assert not any(p.requires_grad for p in loaded.parameters()) and numerics.dtype == torch.float32
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_base_model_gets_the_default_template_or_the_named_one(tmp_path):
    folder_model(tmp_path / "in", chat_template=None)
    assert convert(folder_spec(tmp_path / "in"), tmp_path / "default")["chat_template"] == "tokenuq's default"
    assert load_tokenizer(tmp_path / "default").chat_template == default_template()
    (tmp_path / "own.jinja").write_text(CHATML + "{# mine #}")
    named = folder_spec(tmp_path / "in", chat_template=str(tmp_path / "own.jinja"))
    assert convert(named, tmp_path / "named")["chat_template"] == "given in models.yaml"
    assert load_tokenizer(tmp_path / "named").chat_template == CHATML + "{# mine #}"


def test_a_base_model_without_end_of_sequence_is_rejected(tmp_path):
    folder_model(tmp_path / "in", chat_template=None)
    path = tmp_path / "in" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(
        InputError, match="model m: the tokenizer has no chat template, and no end-of-sequence .*set `chat_temp"
    ):
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")


def test_the_text_of_a_template_is_a_field_and_its_path_is_not(tmp_path):
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text(CHATML)
    first, second = (folder_spec("x", chat_template=str(tmp_path / name)).fields() for name in ("a.jinja", "b.jinja"))
    assert first == second and first["chat_template"] == CHATML
    # A child process builds the spec from its fields.
    assert ModelSpec(**first).fields() == first
    (tmp_path / "a.jinja").write_text(CHATML + " ")
    assert folder_spec("x", chat_template=str(tmp_path / "a.jinja")).fields() != first


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ bos_token }}", "leaves out the user's text"),
        ("{{ raise_exception('never') }}", "rejects the conversation: never"),
    ],
)
def test_a_template_without_answers_is_rejected(tmp_path, template, error):
    folder_model(tmp_path / "in", chat_template=template)
    with pytest.raises(InputError, match=f"model m: the chat template {error}"):
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")


def test_generation_stops_at_the_end_of_a_turn_and_of_the_text(tmp_path):
    """Also with a generation configuration that contradicts itself, which transformers does not save."""
    model = folder_model(tmp_path / "in", chat_template=CHATML.replace("<|im_end|>", "<|im_start|>"))
    ids = {
        token: load_tokenizer(tmp_path / "in").convert_tokens_to_ids(f"<|im_{token}|>") for token in ("start", "end")
    }
    for eos, expected in (([7], [7]), (None, []), (ids["start"], [])):
        model.config.eos_token_id = eos
        model.generation_config = GenerationConfig(eos_token_id=eos)
        model.save_pretrained(tmp_path / "in")
        path = tmp_path / "in" / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.5, "do_sample": False}))
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")
        kept = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
        assert kept == (sorted([*expected, ids["start"]]) if expected else ids["start"])


def test_a_template_without_an_end_of_turn_is_reported(tmp_path):
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    folder_model(tmp_path / "in", chat_template=template)
    reporter, result = run_conversion(folder_spec(tmp_path / "in"), tmp_path)
    assert result.metrics["end_of_turn"] is None
    assert any("generated answers do not end" in line for line in reporter.lines)


def test_the_data_version_follows_weights_template_and_ends(tmp_path):
    model = folder_model(tmp_path / "in")
    version = lambda name, **spec: run_conversion(folder_spec(tmp_path / "in", **spec), tmp_path / name)[1].data_version  # noqa: E731
    first = version("a")
    assert version("b") == first
    (tmp_path / "own.jinja").write_text(CHATML + "{# mine #}")
    assert version("c", chat_template=str(tmp_path / "own.jinja")) != first
    model.generation_config.eos_token_id = 5
    model.save_pretrained(tmp_path / "in")
    assert version("d") != first


@pytest.mark.parametrize("kind", ["gemma2", "phi", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_passes_the_check_of_the_head_and_is_stored(tmp_path, kind, dtype):
    """With soft-capping, a bias, a tied head."""
    tokenizer = tiny_tokenizer(tmp_path / "in")
    tiny_architecture(kind, len(tokenizer) + 9).to(dtype).save_pretrained(tmp_path / "in")
    figures = convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    assert figures["stored_dtype"] == str(dtype).removeprefix("torch.")
    assert figures["vocabulary"] == figures["tokens"] + 9


def test_the_models_of_the_paper_are_configured_from_the_hub():
    models = load_config(CONFIG).models
    ids = {name: models[name].id for name in ("gemma_2b", "gemma_2_2b", "llama_3_2_1b", "phi_2")}
    assert ids == {
        "gemma_2b": "google/gemma-2b",
        "gemma_2_2b": "google/gemma-2-2b",
        "llama_3_2_1b": "meta-llama/Llama-3.2-1B",
        "phi_2": "microsoft/phi-2",
    }
    assert "<end_of_turn>" in models["gemma_2b"].fields()["chat_template"]


def test_an_unknown_operation_after_the_head_is_left_to_the_model(tmp_path, monkeypatch):
    """Trap 1, for future architectures: something else is done to the logits."""
    folder_model(tmp_path / "in")
    original = LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        out.logits = out.logits.abs()
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    figures = convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    assert figures["logits"].startswith("by the model's own forward pass, because its logits are not those")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite_are_rejected(tmp_path, name):
    """Also of the embedding of one token, which a few tokens would not show."""
    folder_model(tmp_path / "in")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "in")
    model.get_parameter(name).data[-1] = float("nan")
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(InputError, match=f"model m: 1 of its weights have values that are not finite .* first {name}"):
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
