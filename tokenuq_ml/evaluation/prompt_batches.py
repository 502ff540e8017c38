"""Whether a model's answers to prompts of one batch are those to each prompt alone.

They are not where padding enters a model's state or a cache mixes rows, as with RWKV in transformers 5.23.

Shapes: B sequences, T positions, V vocabulary, S steps.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.seeding import probe_generator

LENGTHS = (9, 5)
"""Tokens of the two prompts that are tried."""
STEPS = 2
"""Tokens of their answers: the second one is read from the cache."""
_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()

StepLogits = Callable[[list[list[int]]], Tensor]
"""From prompts of one batch to the logits `[B, S, V]` of the first tokens of each answer."""


def batches_are_exact(model: PreTrainedModel, step_logits: StepLogits) -> bool:
    """Return whether prompts of two lengths have the logits in a batch that they have alone; tried once per model."""
    if model not in _known:
        rows = model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(rows, (sum(LENGTHS),), generator=probe_generator())
        prompts = [part.tolist() for part in ids.split(LENGTHS)]
        together_BSV = step_logits(prompts).float()
        alone_BSV = torch.cat([step_logits([prompt]) for prompt in prompts]).float()
        tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
        # `<=`, so that numbers that are not finite do not agree.
        first, second = ((together_BSV - alone_BSV).norm(dim=(0, 2)) <= tolerance * alone_BSV.norm(dim=(0, 2))).tolist()
        # In 16 bits, rounding may make another first token the likeliest, and then the second logits differ.
        same_tokens = torch.equal(together_BSV[:, 0].argmax(-1), alone_BSV[:, 0].argmax(-1))
        _known[model] = first and (second or not same_tokens)
    return _known[model]
