"""Checkpointed layers, other optimisers and compiled layers train what a training without them does, or are refused."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.training import (
    MASKED,
    PAPER,
    assert_same_adapter,
    kill_training,
    training_setup,
)
from tokenuq_ml.config import AblationSpec, LoraSpec, TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.lora_linear import FusedLoraLinear
from tokenuq_ml.training import setup, training_options
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.trainer import train
from tokenuq_ml.training.training_options import check_layers, check_optimizer

CHECKPOINTED = {"gradient_checkpointing": True}
GROWING = AblationSpec(name="growing", select="all", rank_growth={"start": 2, "fall": 0.5})


def setup_with(ablation=PAPER, micro=4, save_steps=50, **keys) -> TrainingSetup:
    """Return a training of one epoch with further keys of `train`."""
    setup = training_setup(ablation, micro, epochs=1, save_steps=save_steps)
    return replace(setup, train=setup.train.model_copy(update=keys))


def trained(folder, model=None, **options):
    """Return the model and the recorder of a training on a model with dropout."""
    model = model or tiny_peft(dropout=0.2)
    return model, train(model, setup_with(**options), folder, RecordingReporter(), "x")


def wide_adapter():
    """Return a model whose adapter is large enough that its moments are kept in 8 bits: 4,096 numbers per matrix."""
    return add_adapter(tiny_model(), LoraSpec(rank=128, alpha=256, dropout=0.0), 0)


@pytest.mark.parametrize("micro", [4, 2], ids=["one pass", "two micro-batches"])
def test_recomputed_layers_drop_what_they_dropped_before(micro, tmp_path):
    """Bit for bit, also where the selection over several micro-batches takes a pass of its own before those."""
    plain, _ = trained(tmp_path / "plain", micro=micro)
    model, recorder = trained(tmp_path / "recomputed", micro=micro, **CHECKPOINTED)
    assert_same_adapter(model, plain)
    assert recorder.training_log()["tokens"].sum() > 0
    # As it was before: evaluations of the same process follow.
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks


def test_layers_are_recomputed_by_an_argument_that_the_installed_transformers_has(monkeypatch):
    """Before 5.23 there is only the older name, which later versions take, too."""
    for name in {setup.CHECKPOINTING, "gradient_checkpointing"}:
        monkeypatch.setattr(setup, "CHECKPOINTING", name)
        for asked in (True, False):
            arguments = setup.training_arguments(setup_with(gradient_checkpointing=asked), "unused")
            newer = getattr(arguments, "activation_checkpointing", False)
            assert (newer or arguments.gradient_checkpointing) is asked


@pytest.mark.slow
def test_layers_are_recomputed_and_a_killed_training_resumes(tmp_path, monkeypatch):
    passes = []
    attention = type(tiny_model().model.layers[0].self_attn)
    forward = attention.forward

    def counted(self, *args, **kwargs):
        passes.append(torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", counted)
    counts = []
    for keys in ({}, CHECKPOINTED):
        passes.clear()
        whole, recorder = trained(tmp_path / str(len(counts)), ablation=MASKED, **keys)
        counts.append(sum(passes))
    assert counts[1] == 2 * counts[0] > 0
    setup = setup_with(MASKED, save_steps=1, **CHECKPOINTED)
    kill_training(2, tiny_peft(dropout=0.2), setup, tmp_path / "killed")
    resumed = tiny_peft(dropout=0.2)
    again = train(resumed, setup, tmp_path / "killed", RecordingReporter(), "x")
    assert_same_adapter(resumed, whole)
    assert again.training_log().equals(recorder.training_log())


def test_the_fused_optimiser_is_adamw(tmp_path):
    logs = [
        trained(tmp_path / name, ablation=MASKED, optimizer=name)[1].training_log()["loss"].to_list()
        for name in ("adamw_torch", "adamw_torch_fused")
    ]
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_moments_in_8_bits_train_almost_as_adamw_and_resume(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
    whole, recorder = trained(tmp_path / "8", wide_adapter(), ablation=MASKED, optimizer="adamw_8bit", save_steps=1)
    _, exact = trained(tmp_path / "32", wide_adapter(), ablation=MASKED)
    losses, expected = (torch.tensor(one.training_log()["loss"].to_list()) for one in (recorder, exact))
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses, expected, rtol=1e-2, atol=0)
    setup = setup_with(MASKED, save_steps=1, optimizer="adamw_8bit")
    kill_training(2, wide_adapter(), setup, tmp_path / "killed")
    resumed = wide_adapter()
    train(resumed, setup, tmp_path / "killed", RecordingReporter(), "x")
    assert_same_adapter(resumed, whole)


@pytest.mark.parametrize(
    ("name", "ablation", "device", "message"),
    [
        ("paged_adamw_8bit", MASKED, "cpu", "paged_adamw_8bit moves its moments .* computes on cpu; set adamw_8bit"),
        ("paged_adamw_32bit", MASKED, "cpu", "computes on cpu; set adamw_torch"),
        ("adamw_8bit", GROWING, "cuda", "rank_growth of growing clears those of single ranks; set adamw_torch"),
    ],
)
def test_optimisers_that_would_do_something_else_are_refused(name, ablation, device, message, monkeypatch):
    monkeypatch.setattr(training_options.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(InputError, match=message):
        check_optimizer(TrainSpec(optimizer=name), ablation, device)


def test_optimisers_of_a_missing_package_are_refused(monkeypatch):
    monkeypatch.setattr(training_options.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the package bitsandbytes, which is not installed"):
        check_optimizer(TrainSpec(optimizer="adamw_8bit"), MASKED, "cuda")
    check_optimizer(TrainSpec(optimizer="adamw_torch_fused"), GROWING, "cpu")


def test_a_paged_optimiser_stops_a_training_before_its_first_step(tmp_path):
    with pytest.raises(InputError, match="paged_adamw_32bit"):
        trained(tmp_path, optimizer="paged_adamw_32bit")
    assert not list(tmp_path.iterdir())


def test_layers_that_cannot_be_recomputed_or_compiled_are_refused(monkeypatch):
    model = tiny_peft()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler on a CPU, and no-such-compiler is missing"):
        check_layers(model, TrainSpec(torch_compile=True))
    monkeypatch.setattr(type(model.get_base_model()), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="cannot recompute the layers of LlamaForCausalLM"):
        check_layers(model, TrainSpec(gradient_checkpointing=True))
    check_layers(model, TrainSpec())


def test_liger_s_layers_are_refused_where_transformers_would_train_without_them(monkeypatch):
    model, train = tiny_peft(), TrainSpec(liger_kernel=True)
    with pytest.raises(InputError, match="liger_kernel: Liger's layers need a GPU, and this machine computes on cpu"):
        check_layers(model, train)
    known = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", known)
    of_type = {
        kind: SimpleNamespace(device=torch.device("cuda"), config=SimpleNamespace(model_type=kind))
        for kind in ("llama", "opt")
    }
    monkeypatch.setattr(training_options.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="the package liger-kernel is not installed; pip install 'tokenuq"):
        training_options._check_liger(of_type["llama"], train)
    monkeypatch.setattr(training_options.importlib.util, "find_spec", lambda _: True)
    training_options._check_liger(of_type["llama"], train)
    with pytest.raises(InputError, match="Liger has no layers for models of type 'opt'; set it to false"):
        training_options._check_liger(of_type["opt"], train)
    both = TrainSpec(liger_kernel=True, torch_compile=True)
    with pytest.raises(InputError, match="set either liger_kernel or torch_compile to false"):
        training_options._check_liger(of_type["llama"], both)


def test_compiled_layers_are_those_of_peft_until_training_ends():
    model = tiny_peft(dropout=0.25)
    before = {name: type(module) for name, module in model.named_modules()}
    with training_options.prepared_layers(model, TrainSpec(torch_compile=True)):
        kinds = {type(module) for name, module in model.named_modules() if name.endswith("q_proj")}
        dropouts = [module.lora_dropout["default"] for module in model.modules() if hasattr(module, "lora_dropout")]
        assert FusedLoraLinear not in kinds
        assert all(type(one) is nn.Dropout and one.p == 0.25 for one in dropouts)
        assert torch._inductor.config.fallback_random
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not torch._inductor.config.fallback_random


def one_layer():
    """Return a model that compiles in half the time."""
    model = tiny_model()
    del model.model.layers[1:]
    return add_adapter(model, LoraSpec(rank=4, alpha=8, dropout=0.2), 0)


@pytest.mark.heavy
@pytest.mark.parametrize("keys", [{}, CHECKPOINTED], ids=["kept", "recomputed"])
def test_compiled_layers_train_what_plain_ones_do(keys, tmp_path, monkeypatch):
    """With the same dropout masks in the pass that selects, in the one that trains, and in recomputed layers."""
    if training_options._why_not_compiled("cpu"):
        pytest.skip("torch.compile needs a C++ compiler")
    compiled, plain = one_layer(), one_layer()
    _, recorder = trained(tmp_path / "compiled", compiled, micro=2, torch_compile=True, **keys)
    with training_options.composed_lora(plain):
        train(plain, setup_with(micro=2), tmp_path / "plain", RecordingReporter(), "x")
    for (name, own), (_, other) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4, msg=name)
    assert not compiled.training
    assert recorder.training_log()["loss"].is_finite().all()


def test_keys_at_their_default_are_in_no_version():
    keys = {"gradient_checkpointing": True, "optimizer": "adamw_8bit", "torch_compile": True}
    assert not set(keys) & set(TrainSpec().fields())
    assert keys.items() <= TrainSpec(**keys).fields().items()
