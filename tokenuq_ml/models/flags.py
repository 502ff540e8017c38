"""Train and eval mode of every module, and `requires_grad` of every parameter, put back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

FOUR_BIT = ("Linear4bit", "LinearNF4", "LinearFP4")
"""Classes of bitsandbytes."""


@contextmanager
def restored_flags(model: nn.Module) -> Iterator[None]:
    """Restore afterwards the mode of each module and `requires_grad` of each parameter that the model has now.

    `model.train(was_training)` would give all modules one mode, also those that a user has put into another. PEFT's
    `disable_adapter` and `set_adapter` make all of the active adapter's parameters trainable, also those that a user
    has frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trainable:
            # Setting the flag of an inference tensor or a non-leaf raises, so only what has changed is set.
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode inside the context (`set_evaluation_mode`); `restored_flags` afterwards."""
    with restored_flags(model):
        set_evaluation_mode(model)
        yield


def set_evaluation_mode(model: nn.Module) -> None:
    """Put all modules into eval mode, except layers of bitsandbytes with 4-bit weights.

    On a CPU, their first pass in eval mode packs the weights in a way that has no gradient. Nothing else of them
    depends on the mode.
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ in FOUR_BIT:
            module.training = True
