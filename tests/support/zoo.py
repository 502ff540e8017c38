"""Tiny random models of every causal language model that the installed transformers can build.

The tiny configurations of transformers' own tests are one hand-written class per architecture, and not in its package.
So this shrinks the default configurations by the names of their fields; `EXCEPTIONS` has what names do not say.
"""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.tiny_models import VOCAB

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Model types, as `config.json` has them."""

_FIELDS = {
    "vocabulary": (VOCAB, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    "positions": (
        256,
        """max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions
        max_source_positions original_max_position_embeddings rel_extent""",
    ),
    "widths": (
        32,
        """hidden_size d_model n_embd embedding_size word_embed_proj_dim emb_dim embedding_dim input_embedding_size
        output_embedding_size lru_width attention_hidden_size mamba_d_ssm adapter_input_size adapter_in_dim
        adapter_out_dim""",
    ),
    "widths of the MLP": (
        24,
        """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dff dim_ff d_inner n_inner
        feed_forward_size intermediate_size_mlp dense_intermediate_size""",
    ),
    "widths of experts, and ranks": (
        16,
        """moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size block_multiple_of
        ffn_round_up_to_multiple_of kv_lora_rank q_lora_rank o_lora_rank""",
    ),
    "widths of heads and states": (
        8,
        """head_dim d_head dim_head attention_head_size v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim
        kv_channels linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim mamba_d_head mamba_head_dim
        mamba_d_state ssm_state_size state_size time_step_rank mamba_dt_rank hidden_size_per_layer_input laurel_rank
        gated_norm_rank d_rel rotary_dim query_pre_attn_scalar adapter_rank""",
    ),
    # Shorter than the texts.
    "windows and chunks": (
        8,
        """sliding_window window_size attention_window_size local_attention sliding_window_size attention_chunk_size
        keep_window_size chunk_size mamba_chunk_size block_size""",
    ),
    "heads": (
        4,
        """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads linear_num_value_heads linear_num_heads
        swa_num_attention_heads mamba_n_heads mamba_num_heads n_mamba_heads num_query_groups""",
    ),
    # Many, so that scores of keys, sums of ReLUs, are not all zero: ties are broken differently in another batch.
    "heads of sparse attention": (16, "index_n_heads"),
    "key heads and groups": (
        2,
        """num_key_value_heads num_kv_heads linear_num_key_heads swa_num_key_value_heads n_groups mamba_n_groups
        mamba_ngroups o_groups""",
    ),
    "experts, and keys of sparse attention": (
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts index_topk",
    ),
    "chosen experts, streams": (
        2,
        """num_experts_per_tok num_experts_per_token moe_k moe_topk hc_mult hc_count num_expert_group zero_expert_num
        max_window_layers layer_group_size""",
    ),
    "layers of a kind": (
        1,
        """first_k_dense_replace num_shared_experts n_shared_experts moe_num_shared_experts num_dense_layers n_group
        topk_group moe_layer_start_index num_random_blocks""",
    ),
    "what is left out": (0, "num_kv_shared_layers num_nextn_predict_layers mtp_loss_scaling_factor"),
}
SIZES = {name: size for size, names in _FIELDS.values() for name in names.split()}
"""By name of a field."""
LAYER_COUNTS = set(
    """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers
    num_decoder_layers num_blocks num_layers_per_stack""".split()
)
LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attn_layers", "indexer_types")
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TRANSFORMS = {
    "logit_scale": 0.5,
    "logits_scaling": 3.0,
    "lm_head_multiplier": 0.25,
    "final_logit_softcapping": 1.0,
    "logits_soft_cap": 1.0,
    "output_logit_soft_cap": 1.0,
    "logits_mup_width_multiplier": 3.0,
    "dim_model_base": 16,
    "residual_multiplier": 0.7,
    "embedding_multiplier": 1.5,
    "attention_multiplier": 0.4,
}
"""Factors and caps of logits under all their names, which are off by default; and other factors."""

EXCEPTIONS: dict[str, dict] = {
    "big_bird": {"attention_type": "original_full"},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 2.0}},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    # Longer texts are passes of their own, which other tests try.
    "doge": {"keep_window_size": 64},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "index_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    # Only its text model soft-caps logits.
    "gemma3": {"text_config": {"final_logit_softcapping": None}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 2},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xlstm": {"chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
    },
    "zamba2": {"attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1},
}
"""By model type: sizes that depend on each other, and parts that are absent by default."""

NOT_BUILT = {
    "gemma3n": "its image encoder needs the package timm; its text model is `gemma3n_text`",
    "gemma4_assistant": "drafts tokens for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts tokens for another model, whose keys and values it reads",
    "musicgen": "generates sound; transformers builds it from its parts only",
    "musicgen_melody": "generates sound; transformers builds it from its parts only",
}
"""Model types that `AutoModelForCausalLM` cannot build from a configuration, and why."""


def tiny_zoo_model(kind: str, **fields) -> PreTrainedModel:
    """A random float32 model in eval mode.

    Args:
        kind: One of `KINDS`.
        **fields: Fields of the configuration that replace its small ones.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(CONFIG_MAPPING[kind], **fields)).float()
    return _vary(model).eval()


def small_config(config_class: type[PretrainedConfig], **fields) -> PretrainedConfig:
    """Return a configuration of a few thousand weights, sub-configurations included."""
    small = _small_fields(config_class())
    for name, value in {**EXCEPTIONS.get(config_class.model_type, {}), **fields}.items():
        inner = small.get(name)
        small[name] = small_config(type(inner), **value) if isinstance(inner, PretrainedConfig) else value
    return config_class(**small)


def _small_fields(default: PretrainedConfig) -> dict:
    """Return small values of the fields of a default configuration."""
    lists = {name: vars(default)[name] for name in LAYER_LISTS if vars(default).get(name)}
    # One layer of each kind, at least two.
    kinds = {name: list(dict.fromkeys(layers)) for name, layers in lists.items()}
    count = max([2, *map(len, kinds.values())])
    small = {name: [layers[place % len(layers)] for place in range(count)] for name, layers in kinds.items()}
    for name, value in vars(default).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, PretrainedConfig):
            small[name] = small_config(type(value))
        elif name == "is_decoder":
            small[name] = True
        elif name in TRANSFORMS and (is_number or value is None):
            small[name] = TRANSFORMS[name]
        elif name == "head_dim" or name in SIZES and is_number:
            small[name] = SIZES[name]
        elif name in LAYER_COUNTS and is_number:
            small[name] = count
        elif is_number and ("drop" in name or "jitter" in name):
            small[name] = type(value)(0)
        elif is_number and name.endswith("token_id") and value >= VOCAB:
            small[name] = TOKEN_IDS.get(name, 3)
    if "kv_lora_rank" in small:
        # Latent attention has a key for each head.
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


@torch.no_grad()
def _vary(model: PreTrainedModel) -> PreTrainedModel:
    """Add noise to all weights: logits differ between tokens, and norms and biases are not ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model
