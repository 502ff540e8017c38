"""llama.cpp itself reads the GGUF files, gives the token counts and the log-probabilities of the model.

Needs `pip install --no-deps xllamacpp`, a build of llama.cpp; skipped without it.
"""

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.exported import TEXTS
from tests.support.gguf_models import LLAMA3_ROPE, random_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.export.gguf_file import write_gguf

pytestmark = pytest.mark.heavy
YARN = {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 2.0, "original_max_position_embeddings": 256}
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
KINDS = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("qwen2", {}),
    "qwen2_yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 64}),
    "gemma2": ("gemma2", {**GEMMA, "final_logit_softcapping": 5.0}),
    "gemma3_linear": ("gemma3_text", {**GEMMA, "num_hidden_layers": 6, "rope_parameters": LINEAR}),
}
PROMPT = TEXTS[0].partition("The total")[0]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.2, "vocab_size": 360}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@pytest.mark.parametrize("name", list(KINDS))
def test_llama_cpp_gives_the_log_probabilities_of_the_model(tmp_path, name):
    xllamacpp = pytest.importorskip("xllamacpp")
    kind, changes = KINDS[name]
    tiny_tokenizer(tmp_path / "model")
    # With these weights no model ends its answer at once, of which llama.cpp would tell no probability.
    model = random_model(kind, 2, **{**SIZES, **changes})
    model.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "float32", name, None)
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")(PROMPT, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=ids["input_ids"]).logits[0, -1].log_softmax(-1).topk(5)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
    request = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 8, "cache_prompt": False}
    answer = xllamacpp.Server(parameters).handle_completions(request)
    assert answer["usage"]["prompt_tokens"] == ids["input_ids"].shape[1]
    tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = {one["id"]: one["logprob"] for one in tops}
    # Its cache of keys and values is float16.
    for id_, value in zip(expected.indices.tolist(), expected.values.tolist(), strict=True):
        assert found[id_] == pytest.approx(value, abs=0.02)
