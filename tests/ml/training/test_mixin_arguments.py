"""The ablation and the teacher that a user gives a Trainer: every form works, and no key is ignored."""

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer

from tests.support.peft_kinds import add_native_adapter
from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.trainers import Ours, Plain, rows, trained, trainer_of
from tests.support.training import PAPER
from tokenuq_ml import AblationSpec, SeparateTeacher, TokenObjective
from tokenuq_ml.config.shipped import shipped_ablations
from tokenuq_ml.errors import InputError

pytestmark = pytest.mark.slow

ALL = {"select": "all"}


def test_an_ablation_is_named_as_it_is_shipped():
    by_name, by_dict = trained(Ours, "paper_top25"), trained(Ours, PAPER)
    assert by_name.losses == by_dict.losses
    assert by_name.ablation == shipped_ablations()["paper_top25"]
    assert trainer_of(Ours, "masked_mle_top50").ablation.select.quantile == 0.5


def refused(ablation, message, kind=Ours, **kwargs):
    with pytest.raises(InputError, match=message):
        trainer_of(kind, ablation, **kwargs)


def test_an_unknown_name_lists_those_that_are_shipped():
    refused("paper_top26", "ablation 'paper_top26' is not shipped; pass a dict, or one of: mle, .*paper_top25")


def test_what_is_no_ablation_is_refused():
    refused(0.25, "ablation is a float; pass an AblationSpec, a dict .* or the name")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"selekt": "all"}, "^ablation.select: Field required\nablation.selekt: unknown key; allowed: select, "),
        ({"select": {"by": "los"}}, "^ablation.select.by: .*los"),
        ({"select": {"by": "loss", "quantile": 2}}, "^ablation.select.quantile.*less than or equal to 1, got 2"),
    ],
)
def test_a_wrong_entry_is_refused_as_in_the_yaml(entry, message):
    refused(entry, message)


def test_keys_of_the_adapter_are_compared_with_the_users():
    assert trainer_of(Ours, {**ALL, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}})
    refused(
        {**ALL, "lora": {"rank": 16}}, r"lora.rank 16, and the model's adapter has 4; make it with LoraConfig\(r=16"
    )
    refused({**ALL, "lora": {"alpha": 2}}, r"lora.alpha 2, .* has 8; make it with LoraConfig\(lora_alpha=2")
    refused({**ALL, "lora": {"dropout": 0.1}}, "lora.dropout 0.1")
    refused({**ALL, "lora": {"rank": 4}}, "the model has no adapter", model=tiny_model().requires_grad_(True))


def test_keys_of_an_adapter_of_transformers_are_compared_too():
    model = tiny_model()
    add_native_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert trainer_of(Ours, {**ALL, "lora": {"rank": 2}}, model=model)
    refused({**ALL, "lora": {"rank": 4}}, "lora.rank 4, and the model's adapter has 2", model=model)


def test_growth_of_the_rank_needs_a_study_or_a_subclass_that_applies_it():
    class Growing(Ours):
        applied_keys = frozenset({"rank_growth"})

    refused("rank_growth", "rank_growth, which only a study applies")
    assert trainer_of(Growing, "rank_growth")


def test_a_budget_needs_a_study_that_applies_it():
    refused(ALL | {"train": {"learning_rate": 0.1}}, "train.learning_rate, which only a study applies")
    half = {"select": {"by": "loss", "quantile": 0.5}, "budget": "equal_tokens"}
    refused(half, "budget 'equal_tokens', which only a study applies .*; set max_steps")


def test_selection_before_training_needs_its_mask():
    class Static(Ours):
        def static_mask(self, batch):
            return torch.arange(batch.tokens) % 2 == 0

        def record(self, batch, out, tokens_of_step):
            assert torch.equal(out.selected_N, self.static_mask(batch))

    ablation = {"select": {"by": "teacher_loss", "quantile": 0.25, "scope": "dataset"}}
    refused(ablation, "scope 'dataset', .* override `static_mask`")
    trained(Static, ablation)


def test_keys_are_checked_for_the_model_that_is_trained():
    """`model_init` may give each training another adapter."""
    ranks = iter([4, 4, 8])

    def new():
        model = tiny_model()
        add_native_adapter(model, LoraConfig(r=next(ranks), target_modules=["q_proj"]))
        return model

    trainer = trainer_of(Ours, {**ALL, "lora": {"rank": 4}}, model_init=new)
    trainer.train()
    with pytest.raises(InputError, match="lora.rank 4, and the model's adapter has 8"):
        trainer.train()


def test_a_model_as_teacher_is_wrapped():
    given, wrapped = (
        trained(Ours, PAPER, teacher=t) for t in (tiny_model(seed=3), SeparateTeacher(tiny_model(seed=3)))
    )
    assert given.losses == wrapped.losses != trained(Ours, PAPER).losses


def test_a_model_that_shares_weights_with_the_student_is_no_teacher():
    model = tiny_peft()
    refused(PAPER, "shares weights with the student", model=model, teacher=model.get_base_model())


def test_a_loss_of_a_base_class_that_is_not_used_is_named():
    class Own(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    class Over(TokenObjective, Own):
        pass

    class Before(Own, TokenObjective, Trainer):
        pass

    with pytest.warns(UserWarning, match="Own.compute_loss is used in evaluation only"):
        trainer_of(Over, ALL)
    trainer_of(Before, ALL)


def test_a_subclass_may_leave_out_the_number_of_tokens():
    class Older(Ours):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, inputs, return_outputs)

    options = {"gradient_accumulation_steps": 2}
    assert trained(Older, options=options).losses == trained(options=options).losses


def test_a_spec_of_a_study_is_taken_as_it_is():
    spec = AblationSpec(name="mine", select="all")
    assert trainer_of(Ours, spec, train_dataset=rows(2)).ablation is spec


@pytest.mark.parametrize("hooked", [lambda model: model, lambda model: model.get_base_model()], ids=["PEFT's", "inner"])
def test_a_hook_that_would_not_get_logits_is_refused_when_training_starts(hooked):
    trainer = trainer_of(Ours, ALL)
    handle = hooked(trainer.model).register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="has a forward hook, which would get the loss in place of the logits"):
        trainer.train()
    handle.remove()
    assert trainer.train().global_step


def test_a_hook_on_a_layer_takes_part_in_training():
    losses = []
    for kind in (Ours, Plain):
        trainer = trainer_of(kind, ALL)
        trainer.model.get_base_model().model.layers[0].register_forward_hook(lambda _, __, out: out * 0.5)
        trainer.train()
        losses.append(trainer.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
