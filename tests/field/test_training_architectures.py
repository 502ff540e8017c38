"""Architectures that tokenuq reads right, and those that it refuses before any training."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

from tests.support.mixtures import tiny_mixture
from tests.support.model_folders import folder_spec, run_conversion
from tests.support.tiny_models import MIXTURES, tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import score_tokens
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.costs.sources import model_source
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.load import load_model, load_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ["The farmer has 12 apples and sells 5 of them.", "She works for 6 days every week", "a b"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNUSUAL = {
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "lm_head_multiplier": 0.25,
        "head_dim": 8,
    },
    "hyperclovax": {"logits_scaling": 0.5},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 16,
        "logits_soft_cap": 3.0,
        "initializer_range": 0.9,
    },
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.5},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "mamba": {},
    "rwkv": {"attention_hidden_size": 32},
    "modernbert-decoder": {},
}
"""Factors and caps of the logits under several names, layers without attention, layers between states and head."""


def unusual_model(kind: str, vocab: int):
    """Return a random model; norms are random too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "vocab_size": vocab, **UNUSUAL[kind]})
    model = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def plain_losses(model, tokenizer, texts=TEXTS) -> torch.Tensor:
    """Return the losses of all tokens after the first of each text, from the model's own logits."""
    losses = []
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(losses)


def our_losses(model, tokenizer, texts=TEXTS) -> torch.Tensor:
    """Return the same by `score_tokens`."""
    return torch.tensor(score_tokens(model, tokenizer, texts).sort("text", "position")["loss"].to_list())


@pytest.mark.parametrize("kind", [*UNUSUAL, *MIXTURES])
def test_a_converted_model_scores_as_its_own_forward_pass_and_takes_an_adapter(kind, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "in")
    vocab = len(tokenizer) + 9
    model = tiny_mixture(kind, vocab_size=vocab) if kind in MIXTURES else unusual_model(kind, vocab)
    model.save_pretrained(tmp_path / "in")
    convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out", "float32")
    tokenizer = load_tokenizer(tmp_path / "out")
    expected = plain_losses(model, tokenizer)
    torch.testing.assert_close(our_losses(loaded, tokenizer), expected, rtol=1e-4, atol=1e-4)
    adapted = add_adapter(loaded, LoraSpec(rank=2, alpha=4, dropout=0.1), 0)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    adapted(torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits.float().square().mean().backward()
    assert trained and all(parameter.grad is not None for parameter in trained.values())


def test_the_conversion_says_what_the_adapter_leaves_frozen(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "in")
    tiny_mixture("qwen3_moe", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "in")
    figures = convert(folder_spec(tmp_path / "in"), tmp_path / "out")
    assert figures["not_adapted"] == "mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate"
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "in")
    assert "not_adapted" not in convert(folder_spec(tmp_path / "in"), tmp_path / "dense")


REFUSED = {
    "t5": "t5 is an encoder-decoder; use a causal language model over text",
    "bart": "bart is an encoder-decoder",
    "gemma3": "gemma3 is more than a text decoder .* such as google/gemma-3-1b-it",
    "llava": "llava is more than a text decoder",
    "qwen2_vl": "qwen2_vl is more than a text decoder",
    "whisper": "whisper is an encoder-decoder",
    "bert": "BertForMaskedLM reads a text in both directions",
    "qwen2": "Qwen2ForSequenceClassification has no output layer over the vocabulary",
}


@pytest.mark.parametrize(("kind", "sentence"), REFUSED.items())
def test_other_models_are_refused_by_conversion_and_plan_before_weights_are_read(kind, sentence, tmp_path):
    tiny_tokenizer(tmp_path)
    config = AutoConfig.for_model(kind)
    saved_as = {"bert": ["BertForMaskedLM"], "qwen2": ["Qwen2ForSequenceClassification"]}
    config.architectures = saved_as.get(kind)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"^model m: {sentence}"):
        convert(folder_spec(tmp_path), tmp_path / "out")
    source, sizes = model_source(folder_spec(tmp_path), tmp_path / "store")
    assert not source.ready and sizes is None
    assert f"tokenuq refuses it: {sentence.split(' .*')[0]}" in source.words


def test_a_model_without_an_output_layer_is_refused(tmp_path):
    """transformers would draw its weights at random."""
    tokenizer = tiny_tokenizer(tmp_path / "in")
    model = tiny_model(vocab=len(tokenizer))
    model.config.tie_word_embeddings = False
    LlamaModel(model.config).save_pretrained(tmp_path / "in")
    with pytest.raises(InputError, match="model m: the files have no weights for 1 tensors .*lm_head.weight"):
        convert(folder_spec(tmp_path / "in"), tmp_path / "out")


def test_an_encoder_that_is_called_a_decoder_is_refused_by_the_gate(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "in")
    config = AutoConfig.for_model("bert", **{**SIZES, "vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertLMHeadModel"]}))
    with pytest.raises(InputError, match="model m: BertLMHeadModel gives a text other logits in a padded batch"):
        run_conversion(folder_spec(tmp_path / "in"), tmp_path)
