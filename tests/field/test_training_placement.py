"""Models that are partly offloaded or quantised: the numbers of their own forward pass, or a refusal by name."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments

from tests.support.mixtures import labelled_rows, padded
from tests.support.tiny_models import VOCAB
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.trainers import RecordedOurs, RecordedPlain
from tests.support.training import MLE
from tokenuq_ml import measure_bald, score_tokens
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.quantization import dequantised_weight, is_quantised_layer
from tokenuq_ml.scoring.batch_threads import num_workers

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
TEXTS = ["The farmer has 12 apples and sells 5 of them.", "She works for 6 days every week", "a b"]
PAPER = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}
HEAD_ON_DISK = {"model": "cpu", "lm_head": "disk"}
LAYERS_ON_DISK = {
    "model.embed_tokens": "disk",
    "model.layers": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny model, wide enough for 4-bit blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(VOCAB, len(TOKENIZER)),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def adapted(model):
    torch.manual_seed(3)
    return get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )


@torch.no_grad()
def plain_losses(model) -> torch.Tensor:
    losses = []
    for text in TEXTS:
        ids = torch.tensor(TOKENIZER(text)["input_ids"])[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(losses)


def our_losses(model, **options) -> torch.Tensor:
    return torch.tensor(score_tokens(model, TOKENIZER, TEXTS, **options).sort("text", "position")["loss"].to_list())


def trained(kind, model, folder, **ours):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True
    )
    trainer = kind(model=model, args=arguments, train_dataset=labelled_rows(), data_collator=padded, **ours)
    trainer.train()
    return trainer


def offloaded(folder, places, tmp_path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=places, offload_folder=tmp_path)


@pytest.mark.parametrize("places", [HEAD_ON_DISK, LAYERS_ON_DISK])
def test_an_offloaded_model_scores_as_its_own_forward_pass(places, folder, tmp_path):
    """One batch at a time: threads would fetch and drop its weights at the same time."""
    model = offloaded(folder, places, tmp_path)
    assert num_workers(model, Numerics("cpu", torch.float32, 4, "test")) == 1
    torch.testing.assert_close(our_losses(model, max_tokens=10), plain_losses(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_next_to_an_offloaded_head_trains_and_has_a_bald(folder, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = trained(RecordedOurs, adapted(offloaded(folder, HEAD_ON_DISK, tmp_path)), tmp_path, ablation=MLE)
    expected = trained(RecordedPlain, adapted(plain), tmp_path)
    assert ours.losses == pytest.approx(expected.losses, rel=1e-5)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-3, atol=1e-6)
    bald = [
        measure_bald(model, TOKENIZER, TEXTS, samples=3)["bald"].to_list()
        for model in (adapted(offloaded(folder, HEAD_ON_DISK, tmp_path)), adapted(_loaded(folder)))
    ]
    assert bald[0] == pytest.approx(bald[1], rel=1e-3, abs=1e-6) and max(bald[0]) > 1e-3


def _loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_adapters_of_offloaded_layers_are_refused(folder, tmp_path):
    model = adapted(offloaded(folder, LAYERS_ON_DISK, tmp_path))
    for use in (
        lambda: score_tokens(model, TOKENIZER, TEXTS),
        lambda: measure_bald(model, TOKENIZER, TEXTS, samples=2),
        lambda: trained(RecordedOurs, model, tmp_path, ablation=MLE),
    ):
        with pytest.raises(InputError, match=r"the adapter's weight .*lora_A.* has no values, because"):
            use()


def test_bald_of_offloaded_weights_in_16_bits_is_refused(folder, tmp_path):
    model = adapted(offloaded(folder, HEAD_ON_DISK, tmp_path, torch.bfloat16))
    with pytest.raises(InputError, match=r"computed in float32, and the weight .*lm_head.* in torch.bfloat16 is offl"):
        measure_bald(model, TOKENIZER, TEXTS, samples=2)


def quantised(folder, bits: int, head: bool = False):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    options = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    options |= {"llm_int8_skip_modules": ["none"]} if head else {}
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )


@pytest.mark.parametrize(("bits", "head"), [(8, False), (8, True), (4, False)])
def test_a_quantised_model_scores_and_trains_as_its_own_forward_pass(bits, head, folder, tmp_path):
    """A pass in eval mode packs 4-bit weights on some processors, and then they give no gradient."""
    model = quantised(folder, bits, head)
    torch.testing.assert_close(our_losses(model), plain_losses(model), rtol=1e-4, atol=1e-4)
    trainers = []
    for kind, ours in ((RecordedPlain, {}), (RecordedOurs, {"ablation": MLE}), (RecordedOurs, {"ablation": PAPER})):
        model = prepare_model_for_kbit_training(quantised(folder, bits, head), use_gradient_checkpointing=False)
        trainers.append(trained(kind, adapted(model), tmp_path, **ours))
    expected, ours, distilled = trainers
    assert ours.losses == pytest.approx(expected.losses, rel=1e-5)
    assert ours.gradients.keys() == expected.gradients.keys() == distilled.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert (ours.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("bits", [8, 4])
def test_bald_of_a_quantised_model_is_that_of_its_dequantised_weights(bits, folder):
    source, plain = quantised(folder, bits), _loaded(folder)
    for name, layer in source.named_modules():
        if is_quantised_layer(layer):
            plain.get_submodule(name).weight.data = dequantised_weight(layer)
    bald = [
        measure_bald(adapted(model), TOKENIZER, TEXTS, samples=3).sort("text", "position")["bald"].to_list()
        for model in (source, plain)
    ]
    assert bald[0] == pytest.approx(bald[1], rel=1e-3, abs=1e-6) and max(bald[0]) > 1e-3


def test_weights_that_were_packed_for_inference_are_not_trained_in_silence(folder, tmp_path):
    model = adapted(prepare_model_for_kbit_training(quantised(folder, 4), use_gradient_checkpointing=False)).eval()
    model(input_ids=torch.tensor([[5, 6]]))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    # As on a processor with bfloat16 products.
    layer.weight.quant_state.packing_format_for_cpu = True
    first = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    first.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(InputError, match="4-bit weights were packed for inference on a CPU"):
        trained(RecordedOurs, model, tmp_path, ablation=MLE)


def test_bald_refuses_weights_that_were_packed_for_inference(folder):
    """Their scales were rounded."""
    model = adapted(quantised(folder, 4))
    layer = next(layer for layer in model.modules() if is_quantised_layer(layer))
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(InputError, match=r"4-bit weights of .*q_proj.* were packed for inference on a CPU"):
        measure_bald(model, TOKENIZER, TEXTS, samples=2)


def test_bald_refuses_integer_weights_of_other_libraries(folder):
    """They would stay rounded while the rest is computed in float32."""
    model = _loaded(folder)
    rounded = torch.nn.Module()
    rounded.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    model.model.rounded = rounded
    with pytest.raises(InputError, match=r"the layer .*rounded \(Module\) is quantised; load the base"):
        measure_bald(adapted(model), TOKENIZER, TEXTS, samples=2)
