"""Whether generated answers are those of the model's forward pass, and those of one batch those to each prompt alone.

Some are not in transformers 5.23: RoBERTa's generation counts positions from 0, xLSTM's and HRM's fail at their cache;
padding enters the state of RWKV.

Shapes: B sequences, T positions, V vocabulary, S steps.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.sharding import class_of
from tokenuq_ml.seeding import probe_generator
from tokenuq_ml.system_errors import is_system_error

LENGTHS = (9, 5)
"""Tokens of the two prompts that are tried."""
STEPS = 2
"""Tokens of their answers: the second one is read from the cache."""
_checked: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()

StepLogits = Callable[[list[list[int]]], Tensor]
"""From prompts of one batch to the logits `[B, S, V]` of the first tokens of each answer."""


def require_generation(model: PreTrainedModel, step_logits: StepLogits) -> None:
    """Compare the first logits of an answer with those of a forward pass over all tokens before; once per model.

    Raises:
        InputError: they differ, or generation fails.
    """
    if model in _checked:
        return
    remedy = "leave generated answers out of the study's `evaluation`, or use another model"
    ids = trial_prompts(model)[0]
    try:
        steps_SV = step_logits([ids])[0]
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if is_system_error(error):
            raise
        name = class_of(model).__name__
        raise InputError(f"transformers cannot generate with {name} ({error}); {remedy}") from error
    for step_V in steps_SV:
        own_V = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        if not (step_V.float() - own_V.float()).norm() <= _tolerance(model) * own_V.float().norm():
            raise InputError(
                f"{class_of(model).__name__} generates by other logits than those of its forward pass; {remedy}"
            )
        ids = [*ids, int(step_V.argmax())]
    _checked[model] = True


def trial_prompts(model: PreTrainedModel) -> list[list[int]]:
    """Return two prompts of different lengths."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (sum(LENGTHS),), generator=probe_generator())
    return [part.tolist() for part in ids.split(LENGTHS)]


def _tolerance(model: PreTrainedModel) -> float:
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1


def batches_are_exact(model: PreTrainedModel, step_logits: StepLogits) -> bool:
    """Return whether prompts of two lengths have the logits in a batch that they have alone; tried once per model."""
    if model not in _known:
        prompts, tolerance = trial_prompts(model), _tolerance(model)
        together_BSV = step_logits(prompts).float()
        alone_BSV = torch.cat([step_logits([prompt]) for prompt in prompts]).float()
        # `<=`, so that numbers that are not finite do not agree.
        first, second = ((together_BSV - alone_BSV).norm(dim=(0, 2)) <= tolerance * alone_BSV.norm(dim=(0, 2))).tolist()
        # In 16 bits, rounding may make another first token the likeliest, and then the second logits differ.
        same_tokens = torch.equal(together_BSV[:, 0].argmax(-1), alone_BSV[:, 0].argmax(-1))
        _known[model] = first and (second or not same_tokens)
    return _known[model]
