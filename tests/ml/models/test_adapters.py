"""Adapters: their layers, their stored form, and the digest of it."""

import json

import pytest
import torch

from tests.support.tiny_models import FLOAT32, tiny_model, tiny_peft
from tokenuq_ml.models.adapters import adapter_digest, attach_adapter, save_adapter
from tokenuq_ml.models.forward import head_of, hidden_states


def test_the_digest_depends_on_the_content_alone(tmp_path):
    model = tiny_peft()
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert adapter_digest(tmp_path / "a") == adapter_digest(tmp_path / "b")
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] += 1
    model.save_pretrained(tmp_path / "c")
    assert adapter_digest(tmp_path / "c") != adapter_digest(tmp_path / "a")


def test_an_adapter_is_saved_as_peft_does_with_sets_in_order(tmp_path):
    """PEFT's order of a set follows Python's hash seed, which differs between processes."""
    model = tiny_peft()
    model.save_pretrained(tmp_path / "peft")
    save_adapter(model, tmp_path / "own")
    theirs, own = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "own"))
    assert own["target_modules"] == sorted(theirs["target_modules"])
    assert own | {"target_modules": None} == theirs | {"target_modules": None}
    for file in ("adapter_model.safetensors", "README.md"):
        assert (tmp_path / "own" / file).read_bytes() == (tmp_path / "peft" / file).read_bytes()


def test_an_adapter_leaves_the_head_alone_and_reloads_with_the_same_outputs(tmp_path):
    model = tiny_peft()
    assert not any("lm_head" in name for name, _ in model.named_parameters() if "lora" in name)
    assert not head_of(model).weight_VD.requires_grad
    model.save_pretrained(tmp_path)
    again = attach_adapter(tiny_model(), tmp_path, "teacher")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(
        hidden_states(again, {"input_ids": ids}, FLOAT32), hidden_states(model.eval(), {"input_ids": ids}, FLOAT32)
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_loads_without_a_warning_of_peft(kind, tmp_path, recwarn):
    """PEFT warns where the config does not say that layers are transposed, as GPT-2's are."""
    tiny_peft(kind).save_pretrained(tmp_path)
    attach_adapter(tiny_model(kind), tmp_path, "teacher")
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]
