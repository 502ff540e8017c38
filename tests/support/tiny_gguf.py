"""A tiny GGUF file, written when it is called."""

from pathlib import Path

import gguf
import numpy as np


def write_gguf(path: str | Path) -> None:
    """Write a two-layer Llama with a byte-level vocabulary, in the format that llama.cpp reads."""
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
