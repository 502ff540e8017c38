"""The model under which given texts are scored: its base as the adapter knew it, and complete models."""

import pytest
import torch

from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.batching import collate
from tokenuq_ml.models.adapters import save_adapter, use_adapter
from tokenuq_ml.models.forward import hidden_states
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.quantization import quantised_layers
from tokenuq_ml.stages.score_given import ADAPTER, GivenModel, _loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("given")
    tiny_tokenizer(path / "base")
    tiny_model().save_pretrained(path / "base")
    save_adapter(tiny_peft(), path / "lora")
    full = tiny_model()
    for parameter in full.parameters():
        parameter.data += 0.05
    save_adapter(full, path / "full")
    return path


def test_an_adapter_of_a_quantised_base_is_loaded_on_one(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    given = GivenModel(
        "m", str(folder / "base"), None, str(folder / "lora"), "s", quantization="nf4", precision="float32"
    )
    model, _, _ = _loaded(given, tmp_path)
    assert len(list(quantised_layers(model))) == 14


def test_a_complete_model_is_loaded_with_its_base_beside_it(folder, tmp_path):
    given = GivenModel("m", str(folder / "base"), None, str(folder / "full"), "s", precision="float32")
    model, _, _ = _loaded(given, tmp_path)
    inputs = collate(examples(2)).model_inputs
    expected = {name: load_model(folder / name, "float32")[0] for name in ("base", "full")}
    with torch.no_grad():
        assert torch.equal(hidden_states(model, inputs), hidden_states(expected["full"], inputs))
        with use_adapter(model, None):
            assert torch.equal(hidden_states(model, inputs), hidden_states(expected["base"], inputs))
        with use_adapter(model, ADAPTER):
            assert torch.equal(hidden_states(model, inputs), hidden_states(expected["full"], inputs))
