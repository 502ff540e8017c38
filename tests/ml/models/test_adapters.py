"""Models: precision, adapters, digests."""

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.models import forward
from tokenuq_ml.models.adapters import adapter_digest, attach_adapter
from tokenuq_ml.models.forward import cached_dtypes, head_of, hidden_states
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.numerics import Numerics, resolve_numerics


def folder_model(folder):
    made = tiny_tokenizer(folder)
    tiny_model(vocab=len(made)).save_pretrained(folder)


def test_precision_follows_the_flags_or_the_study(monkeypatch):
    for flag, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda flag=flag: flag)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        if not torch.cuda.is_available():
            assert resolve_numerics("auto").dtype == expected
    assert resolve_numerics("float32").fields()["precision"] == "float32"


def test_bfloat16_states_are_near_float32(tmp_path):
    """The stated bound: bfloat16 moves token losses by hundredths of a nat, not by more."""
    from tokenuq_ml.scoring.token_losses import score_examples

    folder_model(tmp_path)
    rows = [e for e in examples(6)]
    exact = score_examples(*_loaded(tmp_path, "float32", rows))
    rounded = score_examples(*_loaded(tmp_path, "bfloat16", rows))
    difference = (exact["loss"] - rounded["loss"]).abs()
    assert difference.mean() < 0.05 and difference.max() < 0.3


def _loaded(folder, precision, rows):
    model, numerics = load_model(folder, precision)
    return model, rows, numerics


def test_digest_is_of_content(tmp_path):
    """The same adapter stored twice has one digest; a moved weight has another."""
    model = tiny_peft()
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert adapter_digest(tmp_path / "a") == adapter_digest(tmp_path / "b")
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] += 1
    model.save_pretrained(tmp_path / "c")
    assert adapter_digest(tmp_path / "c") != adapter_digest(tmp_path / "a")


def test_adapters_leave_the_head_alone_and_reload(tmp_path):
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
def test_adapters_load_without_a_warning(kind, tmp_path, recwarn):
    """GPT-2's layers are transposed; PEFT warns where the adapter was not told so."""
    tiny_peft(kind).save_pretrained(tmp_path)
    attach_adapter(tiny_model(kind), tmp_path, "teacher")
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_dtypes_are_looked_at_once_where_they_do_not_change(monkeypatch):
    """Autocast is on where some weight has another dtype, and else it is not; inside, nobody looks again."""
    numerics, model = Numerics("cpu", torch.bfloat16, 1, "test"), tiny_peft().eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        assert hidden_states(model, inputs).dtype == torch.float32
        lowered = hidden_states(model, inputs, numerics)
        with cached_dtypes(model):
            with cached_dtypes(model):
                pass
            monkeypatch.setattr(type(forward.causal_lm(model)), "parameters", lambda *_: pytest.fail("looked again"))
            assert torch.equal(hidden_states(model, inputs, numerics), lowered)
        monkeypatch.undo()
        exact = hidden_states(model, inputs)
        assert not torch.equal(lowered.float(), exact)
        model.to(torch.bfloat16)
        assert torch.equal(hidden_states(model, inputs, numerics), hidden_states(model, inputs))
