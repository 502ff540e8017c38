"""The choice of device and dtype."""

import pytest
import torch

from tokenuq_ml.models.numerics import resolve_numerics


@pytest.mark.skipif(torch.cuda.is_available(), reason="flags of the processor decide only without a GPU")
@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_follows_the_flags_of_the_processor(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_numerics("auto").dtype == expected


def test_a_precision_of_the_study_overrides_the_flags(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_numerics("float32").fields()["precision"] == "float32"
    assert resolve_numerics("bfloat16").reason == "set in the study"
