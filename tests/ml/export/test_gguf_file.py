"""GGUF files of tiny models of each architecture: transformers' reader gives the logits, llama.cpp's keys are there.

What no key says is refused by its name.
"""

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.exported import held_out
from tests.support.gguf_models import LLAMA3_ROPE, random_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.export.bounds import BOUNDS, difference
from tokenuq_ml.export.gguf_file import read_back, write_gguf
from tokenuq_ml.export.trained import logits_of

pytestmark = pytest.mark.slow
KINDS = {
    # With keys that models have which were read from GGUF files.
    "llama": {"tie_word_embeddings": True, "unk_token_id": 0, "_model_name_or_path": "Tiny"},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 128, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "num_hidden_layers": 6},
}


def model_folder(folder, kind, **changes):
    """Write a tiny model and its tokenizer; return both."""
    tiny_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
    # More rows than tokens, as models are padded.
    sizes |= {"vocab_size": 356, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = random_model(kind, 0, **{**sizes, **KINDS[kind], **changes})
    model.save_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


def written(tmp_path, kind, dtype="float32", **changes):
    """Write a file; return how it differs as transformers reads it, what is noted, and its keys."""
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    model, tokenizer = model_folder(folder, kind, **changes)
    texts = held_out(tokenizer)
    write_gguf(folder, file, dtype, "study/ablation", "apache-2.0")
    found = read_back(file, folder, tokenizer, texts)
    return difference(logits_of(model, texts), found.logits), found.notes, gguf.GGUFReader(file)


def value(reader, key):
    return reader.fields[key].contents()


@pytest.mark.parametrize("kind", list(KINDS))
def test_transformers_reads_the_logits_of_the_model(tmp_path, kind):
    found, notes, reader = written(tmp_path, kind)
    assert found.max_abs == 0 and found.positions > 20
    # Both Gemmas scale attention by a number that llama.cpp computes itself, and transformers does not read.
    assert len(notes) == ("gemma" in kind) and all("query_pre_attn_scalar" in note for note in notes)
    name = {"gemma3_text": "gemma3"}.get(kind, kind)
    assert value(reader, "general.architecture") == name and value(reader, "general.license") == "apache-2.0"
    assert value(reader, "tokenizer.ggml.pre") == ("qwen2" if kind == "qwen2" else "gpt-2")
    assert value(reader, "tokenizer.chat_template") == tiny_tokenizer().chat_template
    assert ("output.weight" in {tensor.name for tensor in reader.tensors}) == (kind == "qwen2")
    if kind == "gemma2":
        assert (
            value(reader, "gemma2.final_logit_softcapping") == 5
            and value(reader, "gemma2.attn_logit_softcapping") == 50
        )
    if "gemma" in kind:
        assert value(reader, f"{name}.attention.sliding_window") == 8
        assert value(reader, f"{name}.attention.key_length") == 8


@pytest.mark.parametrize("dtype, kind", [("bfloat16", "BF16"), ("float16", "F16")])
def test_matrices_have_the_dtype_and_vectors_are_float32(tmp_path, dtype, kind):
    found, _, reader = written(tmp_path, "llama", dtype)
    assert 0 < found.relative < BOUNDS[dtype].relative
    assert {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2} == {kind}
    assert {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 1} == {"F32"}


def test_llama_3_positions_are_a_tensor_of_factors(tmp_path):
    found, notes, reader = written(tmp_path, "llama", rope_parameters=LLAMA3_ROPE)
    assert found.max_abs == 0 and "rope_parameters" in notes[0]
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    # By hand for heads of width 8: high frequencies stay, low ones are divided by 4, between them it is smooth.
    frequencies = [10000.0 ** (-index / 8) for index in range(0, 8, 2)]
    smooth = [(64 * one / (2 * torch.pi) - 1) / 3 for one in frequencies]
    expected = [1 / ((1 - min(1, max(0, s))) / 4 + min(1, max(0, s))) for s in smooth]
    assert factors.tolist() == pytest.approx(expected, rel=1e-5) and 1 in expected and 4 in expected


@pytest.mark.parametrize("kind, factor", [("linear", {"factor": 2.0}), ("yarn", {"factor": 2.0})])
def test_scaled_positions_have_keys(tmp_path, kind, factor):
    rope = {"rope_type": kind, "rope_theta": 20000.0, **factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 256
    found, notes, reader = written(tmp_path, "qwen2", rope_parameters=rope)
    assert found.max_abs == 0 and "rope_parameters" in notes[0]
    assert value(reader, "qwen2.rope.scaling.type") == kind and value(reader, "qwen2.rope.scaling.factor") == 2
    assert value(reader, "qwen2.rope.freq_base") == 20000


@pytest.mark.parametrize(
    "kind, changes, named",
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act as 'silu', and the model has 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar as 8"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "layer_types"),
        ("llama", {"a_new_key": 3}, "no key is known for 'a_new_key'"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, kind, changes, named):
    with pytest.raises(InputError, match=named):
        written(tmp_path, kind, **changes)


def test_other_architectures_are_refused_with_the_remedy(tmp_path):
    tiny_tokenizer(tmp_path)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=356)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="architecture gpt2 is not among llama, qwen2.*LLAMA_CPP.*--merge"):
        write_gguf(tmp_path, tmp_path / "x.gguf", "float32", "a", None)


def test_a_wrong_order_of_rows_is_found(tmp_path, monkeypatch):
    from tokenuq_ml.export import gguf_file

    monkeypatch.setattr(gguf_file, "_by_pairs", lambda values, heads: values)
    found, _, _ = written(tmp_path, "llama")
    assert found.relative > BOUNDS["bfloat16"].relative
