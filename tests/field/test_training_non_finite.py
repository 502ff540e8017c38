"""NaN and Inf stop a training at the step, by name, and leave the last good checkpoint. Peers train on."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import examples, tiny_peft
from tests.support.training import MLE, PAPER, training_setup
from tokenuq_ml import TokenObjective
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.training.checkpoints import latest_checkpoint
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow

DOWN = "model.layers.1.mlp.down_proj"


class MyTrainer(TokenObjective, Trainer):
    """A user's own Trainer."""


class Callback(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def rows(count=8):
    masked = lambda e: [t if m else -100 for t, m in zip(e.input_ids, e.response_mask, strict=True)]  # noqa: E731
    return [{"input_ids": e.input_ids, "labels": masked(e)} for e in examples(count)]


def collate_rows(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    padded = lambda name, fill: [row[name] + [fill] * (longest - len(row[name])) for row in batch]  # noqa: E731
    return {"input_ids": torch.tensor(padded("input_ids", 0)), "labels": torch.tensor(padded("labels", -100))}


def trainer_of(folder, model, ablation=MLE, kind=MyTrainer, micro=4, callbacks=(), model_init=None, **options):
    arguments = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": 4 // micro,
        "max_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
    } | options
    return kind(
        model=model,
        model_init=model_init,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=rows(),
        data_collator=collate_rows,
        ablation=ablation,
        callbacks=list(callbacks),
    )


def layer(model, name=DOWN):
    return model.get_base_model().get_submodule(name)


def poison(model, name=f"{DOWN}.base_layer", value=math.nan):
    """Make one frozen weight NaN, as a damaged file or a bad conversion does."""
    layer(model, name).weight.data[0, 0] = value


@pytest.mark.parametrize(
    "ablation, micro", [(MLE, 4), (MLE, 2), (PAPER, 4), (PAPER, 2)], ids=lambda x: getattr(x, "name", x)
)
def test_a_weight_that_becomes_nan_stops_the_next_step_by_name(ablation, micro, tmp_path):
    """Also if tokens are selected before the step, by a pass of their own."""
    model = tiny_peft()
    trainer = trainer_of(tmp_path, model, ablation, micro=micro, callbacks=[Callback(2, lambda: poison(model))])
    with pytest.raises(NonFiniteError, match="step 3: the loss is not finite") as caught:
        trainer.train()
    assert trainer.state.global_step == 2 and [row["step"] for row in trainer.state.log_history] == [1, 2]
    message = str(caught.value)
    assert f"first module whose output is not finite is base_model.model.{DOWN} (" in message
    assert "), whose base_layer.weight has 1 of 1536 values that are not finite" in message
    assert "(row 0, row 1" in message
    assert all(torch.isfinite(p).all() for n, p in model.named_parameters() if "lora" in n)


def test_the_examples_whose_tokens_are_not_finite_are_named(tmp_path):
    class Named(MyTrainer):
        def example_ids(self, batch):
            return tuple(f"text {len(row)}-{row[0]}" for row in batch.model_inputs["input_ids"].tolist())

    model = tiny_peft()
    trainer = trainer_of(tmp_path, model, kind=Named)
    batch = next(iter(trainer.get_train_dataloader()))
    overflow = lambda out: out.index_fill(0, torch.tensor([2]), math.inf)  # noqa: E731
    layer(model, DOWN).register_forward_hook(lambda module, args, out: overflow(out) if module.training else None)
    with pytest.raises(NonFiniteError, match="the first module whose output is not finite") as caught:
        trainer.train()
    assert f"(text {len(batch['input_ids'][2])}-{batch['input_ids'][2][0]})" in str(caught.value)


def test_an_overflow_under_one_dropout_mask_is_found_again(tmp_path):
    """The pass that looks for the module draws the masks of the failure."""

    class Overflows(torch.nn.Module):
        def forward(self, x):
            return x / 0 if self.training and torch.rand(()) < 0.3 else torch.nn.functional.silu(x)

    for seed in range(4):
        model = tiny_peft()
        layer(model, "model.layers.0.mlp").act_fn = Overflows()
        trainer = trainer_of(tmp_path, model, micro=1, seed=seed, max_steps=20)
        with pytest.raises(NonFiniteError, match=r"model\.layers\.0\.mlp\.act_fn \(Overflows\)"):
            trainer.train()


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_gradient_that_overflows_stops_before_the_optimisers_step(norm, tmp_path):
    model = tiny_peft()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), norm))
    with pytest.raises(NonFiniteError, match=f"step 1: the norm of the gradient is {norm}") as caught:
        trainer_of(tmp_path, model).train()
    assert "losses and the outputs of all modules are finite, so the backward pass overflowed" in str(caught.value)
    assert ("first in base_model.model.model.layers.0" in str(caught.value)) == (norm == math.inf)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_gradient_is_checked_without_clipping_too(tmp_path):
    model = tiny_peft()
    next(p for name, p in model.named_parameters() if "lora_B" in name).register_hook(lambda grad: grad * math.nan)
    with pytest.raises(NonFiniteError, match="norm of the gradient"):
        trainer_of(tmp_path, model, max_grad_norm=0).train()


def test_a_term_that_a_subclass_adds_is_told_from_an_overflow(tmp_path):
    class Adds(MyTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * math.nan if self.state.global_step == 1 else loss

    with pytest.raises(NonFiniteError, match="step 2: the norm of the gradient is nan .* a term that a subclass or"):
        trainer_of(tmp_path, tiny_peft(), kind=Adds, micro=2).train()


def test_with_a_scaler_a_gradient_may_overflow_but_a_loss_may_not(tmp_path):
    """In float16 a scaler skips such steps; a loss that is NaN has another cause."""

    class Scaled(MyTrainer):
        def _get_grad_norm(self, *args, **kwargs):
            self.accelerator.scaler = SimpleNamespace()
            try:
                return super()._get_grad_norm(*args, **kwargs)
            finally:
                self.accelerator.scaler = None

    model = tiny_peft()
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    handle = weight.register_hook(lambda grad: grad * math.inf)
    trainer = trainer_of(tmp_path, model, kind=Scaled, max_steps=1)
    trainer.optimizer_cls_and_kwargs = torch.optim.SGD, {"lr": 0.0}
    with pytest.raises(NonFiniteError, match="trained weights are not finite"):
        trainer.train()
    assert trainer.state.global_step == 1
    handle.remove()
    weight.data.zero_()
    poison(model)
    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        trainer.train()


def test_weights_that_overflow_in_the_update_are_not_saved(tmp_path):
    """Loss and gradient of the step were finite."""
    model = tiny_peft()
    trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=1, learning_rate=1e39, max_steps=1)
    with pytest.raises(NonFiniteError, match=r"after step 1, \d+ of \d+ trained weights are not finite .first: base_"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_weights_that_overflow_in_the_last_update_are_refused_at_the_end(tmp_path):
    with pytest.raises(NonFiniteError, match="after step 1, .* trained weights are not finite"):
        trainer_of(tmp_path, tiny_peft(), learning_rate=1e39, max_steps=1).train()


def test_weights_of_the_data_that_are_not_finite_are_named(tmp_path):
    class Weighted(MyTrainer):
        def data_weights(self, batch):
            weight_N = torch.ones(batch.tokens)
            weight_N[3] = math.nan
            return weight_N

    with pytest.raises(
        NonFiniteError, match=r"step 1: data_weights is not finite for 1 of \d+ response tokens \(row 0"
    ):
        trainer_of(tmp_path, tiny_peft(), kind=Weighted).train()


def test_a_teacher_that_is_not_finite_is_named(tmp_path):
    class Broken(MyTrainer):
        def _teacher_term(self, batch):
            term = super()._teacher_term(batch)
            term.states.hidden_ND[0] = math.nan
            return term

    with pytest.raises(
        NonFiniteError, match="the divergence to the teacher is not finite .* the teacher's distribution"
    ):
        trainer_of(tmp_path, tiny_peft(), {"select": "all", "selected": {"distill": {}}}, kind=Broken).train()


def own_score(tokens):
    """A user's selector that fails for NaN."""
    assert torch.isfinite(tokens.loss_N).all()
    return tokens.loss_N


def test_a_users_selector_is_not_asked_about_a_loss_that_is_not_finite(tmp_path):
    model = tiny_peft()
    ablation = {"select": {"by": f"{__name__}:own_score", "quantile": 0.25}}
    trainer = trainer_of(tmp_path, model, ablation, callbacks=[Callback(1, lambda: poison(model))])
    with pytest.raises(NonFiniteError, match="step 2: the loss is not finite"):
        trainer.train()


def test_a_column_that_is_not_finite_is_not_selected_by(tmp_path):
    """A sort takes NaN for the largest score."""

    class Columns(MyTrainer):
        def token_columns(self, batch):
            return {"bald": torch.full((batch.tokens,), math.nan)}

    with pytest.raises(NonFiniteError, match=r"step 1: token_columns\['bald'\] is not finite for"):
        trainer_of(tmp_path, tiny_peft(), {"select": {"by": "bald", "quantile": 0.25}}, kind=Columns).train()


def test_a_search_goes_on_after_a_trial_that_diverged_if_it_is_told_to(tmp_path):
    """By optuna's `catch`, which transformers passes on."""
    pytest.importorskip("optuna", reason="extra `hpo`")
    trainer = trainer_of(tmp_path, None, model_init=lambda: tiny_peft(), max_steps=1)  # noqa: PLW0108
    trainer.eval_dataset = rows(2)
    rates = iter([1e39, 1e-3])
    search = {"hp_space": lambda trial: {"learning_rate": next(rates)}, "backend": "optuna", "direction": "minimize"}
    best = trainer.hyperparameter_search(**search, n_trials=2, catch=(NonFiniteError,))
    assert best.run_id == "1" and math.isfinite(best.objective)


def test_the_log_is_not_filtered_and_the_users_argument_is_put_back(tmp_path):
    trainer = trainer_of(tmp_path, tiny_peft(), callbacks=[Callback(1, lambda: seen.append(filters()))])
    seen, filters = [], lambda: trainer.args.logging_nan_inf_filter
    trainer.train()
    assert seen == [False] and filters() is True


def test_the_pipelines_training_keeps_its_last_good_checkpoint_and_resumes_from_it(tmp_path):
    def training(model, poisoned=False):
        setup = training_setup(save_steps=1)
        steps, original = [], TokenObjective.training_step

        def step(self, *args, **kwargs):
            steps.append(self.state.global_step + 1)
            if poisoned and len(steps) == 3:
                poison(model)
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenObjective, "training_step", step)
            return train(model, setup, tmp_path, RecordingReporter(), "x")

    with pytest.raises(InputError, match=r"step 3: the loss is not finite .*\(toy/train\d+, .*down_proj"):
        training(tiny_peft(), poisoned=True)
    assert latest_checkpoint(tmp_path).name == "checkpoint-2"
    log = training(tiny_peft()).training_log()
    assert log["step"].to_list() == list(range(1, 7)) and log["loss"].is_finite().all()
