"""Modes and `requires_grad` are put back one by one."""

import pytest

from tests.support.tiny_models import tiny_peft
from tokenuq_ml.models.flags import evaluation_mode, restored_flags


def flags(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )


@pytest.fixture
def model():
    """A model in train mode with one module in eval mode and one adapter matrix frozen."""
    model = tiny_peft().train()
    next(m for m in model.modules() if type(m).__name__ == "ModuleDict").eval()
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    return model


def test_eval_mode_and_peft_s_switching_change_nothing_afterwards(model):
    before = flags(model)
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        with model.disable_adapter():
            pass
        assert flags(model)[1] != before[1]
    assert flags(model) == before


def test_flags_are_put_back_after_an_exception(model):
    before = flags(model)
    with pytest.raises(KeyError), restored_flags(model):
        model.eval().requires_grad_(True)
        raise KeyError
    assert flags(model) == before
