"""What a GGUF file says of a model besides its tensors: sizes, norms, rotary positions, windows, caps.

Only what llama.cpp computes alike is written. A setting that it has no key for is refused by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tokenuq_ml.errors import InputError

REMEDY = "install llama.cpp's convert_hf_to_gguf.py and name its folder in LLAMA_CPP, or export with --merge"
IRRELEVANT = frozenset(
    "architectures dtype transformers_version use_cache initializer_range attention_dropout pretraining_tp model_type "
    "tie_word_embeddings vocab_size _name_or_path _model_name_or_path cache_implementation "
    "output_attentions output_hidden_states return_dict id2label label2id torch_dtype".split()
)
"""Keys of a config that change no logit of a stored model, or that tensors and vocabulary say."""
SIZES = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings rms_norm_eps rope_parameters rope_scaling rope_theta layer_types attention_bias".split()
)
"""Keys that are written, or checked, for every architecture."""
_GEMMA = frozenset({"hidden_activation", "hidden_act", "query_pre_attn_scalar", "sliding_window"})
_CAPS = frozenset({"final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"})
_QWEN = frozenset({"hidden_act", "sliding_window", "use_sliding_window", "max_window_layers"})


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows an architecture of transformers."""

    gguf_name: str
    number: gguf.MODEL_ARCH
    keys: frozenset[str]
    """Keys of its config that are written or checked, besides `SIZES`."""
    activation: str
    permutes: bool = False
    """Rows of queries and keys are stored in the order of rotary pairs."""
    norm_offset: float = 0.0
    """Is added to the weights of norms, which transformers stores without it."""
    window_period: int = 0
    """Every so many layers one attends to all tokens; 0: no layer has a window."""
    large_layers: int = 0
    """Layers of the size for which attention is scaled by the mean width of a head."""


ARCHITECTURES = {
    "llama": Architecture("llama", gguf.MODEL_ARCH.LLAMA, frozenset({"hidden_act", "mlp_bias"}), "silu", permutes=True),
    "qwen2": Architecture("qwen2", gguf.MODEL_ARCH.QWEN2, _QWEN, "silu"),
    "qwen3": Architecture("qwen3", gguf.MODEL_ARCH.QWEN3, _QWEN, "silu"),
    "gemma2": Architecture(
        "gemma2",
        gguf.MODEL_ARCH.GEMMA2,
        _GEMMA | _CAPS,
        "gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=2,
        large_layers=46,
    ),
    "gemma3_text": Architecture(
        "gemma3",
        gguf.MODEL_ARCH.GEMMA3,
        _GEMMA | _CAPS | {"_sliding_window_pattern", "sliding_window_pattern"},
        "gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=6,
        large_layers=62,
    ),
}
"""Model type of transformers -> architecture."""


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Return the architecture of a model.

    Raises:
        InputError: it is not one that is written here, or a setting of its config has no key in GGUF.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"GGUF: the architecture {kind} is not among {', '.join(ARCHITECTURES)}; {REMEDY}")
    found = ARCHITECTURES[kind]
    default = type(config)().to_dict()
    unknown = sorted(
        key
        for key, value in config.to_dict().items()
        if key not in IRRELEVANT | SIZES | found.keys
        and not key.endswith("_token_id")
        and value not in (None, default.get(key))
    )
    if unknown:
        raise InputError(f"GGUF: no key is known for {unknown[0]!r} of the config of a {kind} model; {REMEDY}")
    _check(config, found)
    return found


def _check(config: PretrainedConfig, found: Architecture) -> None:
    """Refuse values that llama.cpp has no key for and computes otherwise."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", found.activation)
    _require("hidden_act", activation, found.activation)
    _require("use_sliding_window", bool(getattr(config, "use_sliding_window", False)), False)
    _require("use_bidirectional_attention", bool(getattr(config, "use_bidirectional_attention", False)), False)
    if found.window_period:
        layers = ["sliding_attention"] * (found.window_period - 1) + ["full_attention"]
        expected = (layers * config.num_hidden_layers)[: config.num_hidden_layers]
        _require("layer_types", list(config.layer_types), expected)
        large = config.num_hidden_layers == found.large_layers
        width = config.hidden_size // config.num_attention_heads if large else config.head_dim
        _require("query_pre_attn_scalar", config.query_pre_attn_scalar, width)
    else:
        _require("layer_types", set(getattr(config, "layer_types", None) or ()) - {"full_attention"}, set())
    if found.gguf_name == "gemma3":
        _require("attn_logit_softcapping", config.attn_logit_softcapping, None)


def _require(key: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise InputError(f"GGUF: llama.cpp computes {key} as {expected!r}, and the model has {value!r}; {REMEDY}")


def add_settings(writer: gguf.GGUFWriter, config: PretrainedConfig, found: Architecture, rows: int) -> None:
    """Write the settings of a model.

    Args:
        writer: of the file.
        config: of the model.
        found: its architecture.
        rows: of its embedding.

    Raises:
        InputError: its rotary positions are of a kind that is not written here.
    """
    heads, width = config.num_attention_heads, head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(rows)
    if found.window_period:
        writer.add_sliding_window(config.sliding_window)
    for key, add in _caps(writer):
        if (value := getattr(config, key, None)) is not None:
            add(value)
    _add_rope(writer, _rope(config))


def head_width(config: PretrainedConfig) -> int:
    """Return the features of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _caps(writer: gguf.GGUFWriter) -> tuple[tuple[str, Callable[[float], None]], ...]:
    return (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    )


def _rope(config: PretrainedConfig) -> Mapping[str, Any]:
    """Return the rotary positions of layers that attend to all tokens; those of windows are checked."""
    found: Mapping[str, Any] = config.rope_parameters
    if "full_attention" in found:
        _require("rope_parameters.sliding_attention.rope_theta", found["sliding_attention"]["rope_theta"], 10000.0)
        _require("rope_parameters.sliding_attention.rope_type", found["sliding_attention"]["rope_type"], "default")
        found = found["full_attention"]
    _require("partial_rotary_factor", found.get("partial_rotary_factor", 1.0), 1.0)
    return found


def _add_rope(writer: gguf.GGUFWriter, rope: Mapping[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        # The factors of llama3 are a tensor (`rope_factors`).
        return
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        return
    if kind == "yarn" and not rope.keys() - {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        return
    settings = ", ".join(f"{key} {value}" for key, value in sorted(rope.items()))
    raise InputError(f"GGUF: these rotary positions are not written here: {settings}; {REMEDY}")


def rope_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """Return by how much each rotary frequency is divided, for `rope_freqs.weight`; None if by no tensor."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    width, base = head_width(config), rope["rope_theta"]
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return plain / scaled
