"""Teachers that run a forward pass: another adapter of the student's model, or another model."""

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.zoo import tiny_zoo_model
from tests.support.zoo_outcomes import with_adapter
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import attach_adapter, use_adapter
from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher


def test_attaching_and_running_a_teacher_leaves_the_student_trainable_and_active(tmp_path):
    """Trap 3: PEFT's set_adapter makes the new adapter trainable and freezes the student's."""
    tiny_peft(seed=5).save_pretrained(tmp_path)
    model = tiny_peft()
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    attach_adapter(model, tmp_path, "teacher")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before
    OnlineTeacher("teacher", FLOAT32).states(model, collate(examples(2)))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before
    assert model.active_adapter == "default"


def test_using_a_frozen_adapter_leaves_it_frozen(tmp_path):
    tiny_peft(seed=5).save_pretrained(tmp_path)
    model = attach_adapter(tiny_model(), tmp_path, "teacher")
    with use_adapter(model, "teacher"):
        pass
    assert not any(p.requires_grad for p in model.parameters())


def test_an_online_teacher_runs_the_stored_adapter_without_dropout(tmp_path):
    alone = tiny_peft(seed=5)
    alone.save_pretrained(tmp_path)
    model = attach_adapter(tiny_peft(dropout=0.5).train(), tmp_path, "teacher")
    batch = collate(examples(3))
    with use_adapter(alone, "default"):
        expected = batch.predicting(alone.get_base_model().model(batch.input_ids_BT).last_hidden_state)
    torch.testing.assert_close(OnlineTeacher("teacher", FLOAT32).states(model, batch).hidden_ND, expected)
    assert model.training


def test_a_separate_teacher_uses_its_own_model_and_head():
    other = tiny_model(seed=3)
    batch = collate(examples(2))
    teacher = SeparateTeacher(other)
    expected = batch.predicting(other.model(batch.input_ids_BT).last_hidden_state)
    torch.testing.assert_close(teacher.states(None, batch).hidden_ND, expected)
    assert teacher.head.weight_VD is other.lm_head.weight


def test_a_model_that_scales_its_weights_for_the_teachers_pass_is_refused():
    """RWKV, unless it is told not to."""
    with pytest.raises(InputError, match="rescale_every=0"):
        OnlineTeacher().prepare(with_adapter(tiny_zoo_model("rwkv")))
    OnlineTeacher().prepare(with_adapter(tiny_zoo_model("rwkv", rescale_every=0)))
