"""Options of a user's Trainer are honoured or refused by name; after public reports about TRL and transformers."""

from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import TrainingArguments

from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.trainers import Ours, Plain, assert_same_training, rows, trained, trainer_of
from tests.support.training import MASKED, MLE, PAPER
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.trainer_options import check_options

pytestmark = pytest.mark.slow

HONOURED = {
    "nothing": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "neftune": {"neftune_noise_alpha": 20.0},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "group by length": {"train_sampling_strategy": "group_by_length"},
    "rebalanced batches": {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2},
    "in order": {"train_sampling_strategy": "sequential"},
    "short last batch": {"per_device_train_batch_size": 3, "dataloader_drop_last": True},
    "clipping": {"max_grad_norm": 0.05},
    "one process": {"average_tokens_across_devices": False},
    "token count": {"include_num_input_tokens_seen": "non_padding"},
}


@pytest.mark.parametrize("name", HONOURED)
def test_an_option_has_the_effect_that_it_has_without_the_objective(name):
    """Cross-entropy of every response token is the Trainer's own loss: same batches, noise, losses and weights."""
    ours, plain = (trained(kind, options=HONOURED[name]) for kind in (Ours, Plain))
    assert_same_training(ours, plain)
    assert ours.state.num_input_tokens_seen == plain.state.num_input_tokens_seen


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_drop_the_same_in_the_pass_that_selects_and_in_those_that_train(reentrant):
    """The quantile spans two micro-batches, so that each is passed twice before its layers are recomputed."""
    checkpointing = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    plain, recomputed = (
        trained(Ours, PAPER, dropping_model(), {**batches, **options}) for options in ({}, checkpointing)
    )
    assert_same_training(recomputed, plain)


def dropping_model():
    """A model with PEFT's own layers, which drop."""
    lora = LoraConfig(target_modules="all-linear", lora_dropout=0.3, init_lora_weights=False)
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), lora)


def test_a_backend_that_recomputes_with_other_dropout_masks_is_refused():
    """PyTorch's `eager` ignores that masks shall be kept; those that use autograd's graph keep them."""
    options = {"torch_compile": True, "torch_compile_backend": "eager", "gradient_checkpointing": True}
    with pytest.raises(InputError, match="torch_compile_backend='eager' drops other features in recomputed layers"):
        trainer_of(Ours, PAPER, dropping_model(), options)
    check_options(trainer_of(Ours, PAPER, tiny_peft(), options))


def test_the_older_name_of_group_by_length():
    if "group_by_length" not in TrainingArguments.__dataclass_fields__:
        pytest.skip("this transformers has only train_sampling_strategy")
    assert_same_training(*(trained(kind, options={"group_by_length": True}) for kind in (Ours, Plain)))


def test_bf16_is_the_trainers_autocast():
    ours, plain = (trained(kind, options={"bf16": True}) for kind in (Ours, Plain))
    assert ours.losses == pytest.approx(plain.losses, rel=5e-3)
    assert ours.losses != trained().losses


def test_noise_of_neftune_is_the_same_when_tokens_are_selected_and_when_they_are_trained():
    class Recording(Ours):
        def record(self, batch, out, tokens_of_step):
            # `loss_N` is that of the selecting pass, `total` that of the trained one.
            self.pairs = [*getattr(self, "pairs", []), (out.loss_N[out.selected_N].sum().item(), out.total.item())]

    options = {"neftune_noise_alpha": 20.0, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = trained(Recording, MASKED, options=options)
    assert trainer.selection_passes == 2
    assert all(total == pytest.approx(selecting, rel=1e-5) for selecting, total in trainer.pairs)
    assert trainer.losses != pytest.approx(
        trained(Ours, MASKED, options={**options, "neftune_noise_alpha": None}).losses
    )


def test_batches_become_smaller_when_memory_is_short():
    class Short:
        def compute_loss(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    kinds = [type("Trying", (Short, kind), {}) for kind in (Ours, Plain)]
    ours, plain = (trained(kind, options=options) for kind in kinds)
    assert ours._train_batch_size <= 2
    assert_same_training(ours, plain)


def test_a_scaled_loss_gives_the_same_training():
    """As fp16 on a GPU: gradients are those of the scaled loss, and the optimiser gets them unscaled."""

    def scaled(kind, ablation=PAPER):
        trainer = trainer_of(kind, ablation, options={"max_grad_norm": 0.0})
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        trainer.train()
        return trainer

    ours, without = scaled(Ours), trained(Ours, PAPER, options={"max_grad_norm": 0.0})
    assert_same_training(ours, without)
    for name, grad in without.grads.items():
        torch.testing.assert_close(ours.grads[name], grad * 2.0**16, rtol=1e-4, atol=1e-3)


# Inductor takes minutes on two cores.
@pytest.mark.parametrize(
    ("backend", "ablation"),
    [
        pytest.param("aot_eager", PAPER, id="aot_eager", marks=pytest.mark.slow),
        pytest.param("inductor", MLE, id="inductor", marks=pytest.mark.heavy),
    ],
)
def test_a_compiled_model_is_trained_on_the_same_objective(backend, ablation):
    """One layer and texts of one length: compilation takes long."""

    def one_layer():
        model = tiny_model()
        del model.model.layers[1:]
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))

    def run(**options):
        torch.manual_seed(0)
        dataset = [{key: (values * 2)[:12] for key, values in row.items()} for row in rows()]
        return trained(Ours, ablation, one_layer(), {**options, "max_steps": 2}, train_dataset=dataset)

    counters.clear()
    compiled = run(torch_compile=True, torch_compile_backend=backend)
    graphs = counters["stats"]["unique_graphs"]
    assert_same_training(compiled, run(), rtol=1e-4)
    # The layers are one graph; were the objective traced too, it would have many, or fail.
    assert 0 < graphs < 10


def test_each_training_of_model_init_starts_from_a_new_model():
    # In order, because a model that is made in between draws random numbers.
    options = {"train_sampling_strategy": "sequential"}
    trainer = trained(Ours, PAPER, options=options, model_init=lambda: tiny_peft())
    first, model = trainer.losses, trainer.model
    assert first == trained(Ours, PAPER, options=options).losses
    trainer.losses = []
    trainer.train()
    assert trainer.losses == first and trainer.model is not model
    assert "forward" not in vars(model.get_base_model()) | vars(trainer.model.get_base_model())


def test_a_hyperparameter_search_trains_each_trial_on_the_objective():
    pytest.importorskip("optuna", reason="extra `hpo`")
    options = {"train_sampling_strategy": "sequential"}
    searched = trainer_of(Ours, PAPER, options=options, model_init=lambda: tiny_peft(), eval_dataset=rows(4))
    rates, evaluated = [1e-3, 5e-2], []
    searched.add_callback(_Evaluated(evaluated))
    search = lambda trial: {"learning_rate": rates[trial.number]}  # noqa: E731
    best = searched.hyperparameter_search(search, n_trials=2, backend="optuna")
    expected = []
    for rate in rates:
        trainer = trained(Ours, PAPER, options={**options, "learning_rate": rate}, eval_dataset=rows(4))
        expected.append(trainer.evaluate()["eval_loss"])
    assert evaluated == pytest.approx(expected, rel=1e-5)
    assert best.objective == pytest.approx(min(expected), rel=1e-5)
    with pytest.raises(InputError, match="label_smoothing_factor=0.1"):
        searched.hyperparameter_search(lambda trial: {"label_smoothing_factor": 0.1}, n_trials=1, backend="optuna")


class _Evaluated(transformers.TrainerCallback):
    def __init__(self, losses):
        self.losses = losses

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.losses.append(metrics["eval_loss"])


def refused(options=None, ablation=MLE, message="", **kwargs):
    with pytest.raises(InputError, match=message):
        trained(Ours, ablation, options=options, **kwargs)


def test_smoothed_labels_are_refused():
    refused({"label_smoothing_factor": 0.3}, message="label_smoothing_factor=0.3: .* set it to 0")


def test_a_loss_function_of_the_users_is_refused():
    refused(compute_loss_func=lambda *args, **kwargs: 0, message="compute_loss_func: the ablation is the loss")


def test_a_loss_function_that_is_set_later_is_refused():
    trainer = trainer_of()
    trainer.compute_loss_func = lambda *args, **kwargs: 0
    with pytest.raises(InputError, match="compute_loss_func"):
        trainer.train()


def test_fp16_on_a_cpu_is_refused():
    refused({"fp16": True}, message="fp16=True: a CPU does not train in float16; use bf16=True")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_n_gpu": 2}, "n_gpu is 2: nn.DataParallel"),
        ({"fsdp": True}, "fsdp: sharded models are not supported"),
        ({"deepspeed": "zero3.json"}, "deepspeed: sharded models are not supported"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=2, sp_size=1)}, "parallelism_config: cp_size is 2"),
        ({"parallelism_config": SimpleNamespace(tp_size=4)}, "parallelism_config: tp_size is 4"),
    ],
)
def test_devices_that_share_a_model_are_refused(changes, message):
    trainer = trainer_of()
    for name, value in changes.items():
        setattr(trainer.args, name, value)
    with pytest.raises(InputError, match=message):
        check_options(trainer)


def test_a_model_that_transformers_has_sharded_is_refused():
    trainer = trainer_of()
    trainer.is_distributed_loading_by_transformers = True
    with pytest.raises(InputError, match=r"from_pretrained\(distributed_config=...\) has sharded the model"):
        check_options(trainer)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_sharding_that_accelerate_launch_switches_on_is_refused(name):
    trainer = trainer_of()
    setattr(trainer, f"is_{name}_enabled", True)
    with pytest.raises(InputError, match=f"{name}: sharded models"):
        check_options(trainer)


def test_division_by_the_tokens_of_each_process_is_refused():
    trainer = trainer_of(options={"average_tokens_across_devices": False})
    trainer.accelerator = SimpleNamespace(num_processes=2)
    with pytest.raises(InputError, match="average_tokens_across_devices=False"):
        check_options(trainer)


def test_the_layers_of_liger_are_used_and_its_loss_is_not(monkeypatch):
    applied = []
    monkeypatch.setattr(transformers.trainer, "apply_liger_kernel", lambda model, config: applied.append(config))
    trainer = trained(options={"use_liger_kernel": True, "liger_kernel_config": {"rope": False}})
    assert applied == [{"rope": False, "fused_linear_cross_entropy": False}]
    assert trainer.losses == trained().losses
    asked = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}}
    refused(asked, message="liger_kernel_config: fused_linear_cross_entropy replaces the model's own loss")
