"""The attention that a study names: loaded, compared with eager attention, or refused in a sentence."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.support.tiny_models import FLOAT32, tiny_architecture, tiny_model
from tokenuq_ml.config import StudySpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.models import attention
from tokenuq_ml.models.attention import attention_name, check_attention
from tokenuq_ml.models.base_settings import DEFAULT, BaseSettings
from tokenuq_ml.models.forward import packing_is_exact
from tokenuq_ml.models.load import load_model
from tokenuq_ml.stages.request import AssetRequest, StageRequest

H100 = replace(FLOAT32, device="cuda", dtype=torch.bfloat16)


def study(**keys) -> StudySpec:
    return StudySpec(name="s", model="m", dataset="d", ablations=["a"], **keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return made


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_model_has_the_attention_that_the_study_names_and_packs_exactly(name, folder):
    model, numerics = load_model(folder, "float32", BaseSettings(attention=name))
    assert model.config._attn_implementation == name
    assert packing_is_exact(model, numerics)
    assert load_model(folder, "float32")[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["flex", "flash_attention_2"])
def test_attention_that_does_not_train_on_a_cpu_is_refused(name, folder):
    with pytest.raises(InputError, match=f"attention: {name} .* a (CPU|GPU).*; set `attention: sdpa`"):
        load_model(folder, "float32", BaseSettings(attention=name))


def test_flash_attention_needs_its_package_and_a_card_with_bfloat16(monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the package flash-attn, which is not installed"):
        attention_name("flash_attention_2", H100, "auto")
    assert attention_name("flex", H100, "auto") == "flex_attention"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: object())
    assert attention_name("flash_attention_2", H100, "bfloat16") == "flash_attention_2"
    old = replace(H100, dtype=torch.float32)
    with pytest.raises(InputError, match="computes in bfloat16, which this GPU does not multiply"):
        attention_name("flash_attention_2", old, "auto")
    # BALD, which asks for float32 whatever the study says.
    assert attention_name("flash_attention_2", old, "float32") is None


def test_an_architecture_that_transformers_does_not_compute_so_is_refused(tmp_path):
    tiny_architecture("gemma2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="transformers cannot compute this model with attention: sdpa .*Gemma2"):
        load_model(tmp_path, "float32", BaseSettings(attention="sdpa"))
    assert load_model(tmp_path, "float32", BaseSettings(attention="eager"))[0].config._attn_implementation == "eager"


def test_attention_that_leaves_something_out_is_refused(monkeypatch):
    """As one without the model's scale of the scores, which gives other logits."""
    model = tiny_model()

    def unscaled(*args, scaling=None, **kwargs):
        return sdpa_attention_forward(*args, scaling=1.0, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "unscaled", unscaled)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "unscaled", sdpa_mask)
    model.set_attn_implementation("unscaled")
    with pytest.raises(InputError, match="m: attention: flex gives this model other logits than eager attention"):
        check_attention(model, "flex", "m")
    assert model.config._attn_implementation == "unscaled"
    check_attention(model, "auto", "m")


def test_16_bit_attention_and_float32_do_not_go_together():
    for name in ("flex", "flash_attention_2"):
        with pytest.raises(ValidationError, match=f"'attention' {name} computes in bfloat16, and 'precision' is float"):
            study(attention=name, precision={"tables": "float32"})
    assert study(attention="sdpa", precision="float32").base_fields() == {"model": "m", "attention": "sdpa"}


def test_assets_are_loaded_as_their_fields_say_and_older_fields_mean_the_defaults():
    assert "attention" not in study().fields() and study().base_fields() == {"model": "m"}
    fields = {**study(attention="eager", quantization="nf4").base_fields(), "precision": "auto"}
    request = StageRequest(
        entrypoint="x",
        assets={"student": AssetRequest(fields=fields, code_version="1", outputs={})},
        inputs={},
        work_dir="w",
    )
    assert request.base_settings == BaseSettings("eager", "nf4")
    assert BaseSettings.of({"model": "m", "precision": "auto"}) == DEFAULT
