"""Forward passes with Monte-Carlo dropout: a model's dropouts by keyed masks, K samples of its states.

Llama and Gemma have no dropout that `train()` would switch on, so `KeyedDropout` replaces PEFT's `lora_dropout` modules
while the model stays in `eval()`. All layers of the active adapters are sampled, or the model is refused
(`sampled_layers.py`). A model without an adapter is sampled at its own dropouts (`own_dropout.py`). Masks are keyed
(`keyed_masks.py`).

Shapes: B sequences, T positions, D features, N response tokens, K samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.data.batching import Batch
from tokenuq_ml.models.adapter_kinds import has_adapter
from tokenuq_ml.models.attention_dropout import attention_dropout, require_softmax_attention
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.forward import causal_lm, hidden_states
from tokenuq_ml.models.keyed_masks import KeyedDropout, KeyedMasks
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.own_dropout import keyed_dropout, require_dropout
from tokenuq_ml.models.placement import device_of
from tokenuq_ml.models.sampled_layers import drops_only_in_training, sampled_layers

if TYPE_CHECKING:
    from tokenuq_ml.config import UncertaintySpec

StartPass = Callable[[int, list[str]], None]
"""Sets the sample number and the example ids of the calling thread's next forward pass."""


@contextmanager
def monte_carlo_dropout(model: PeftModel | PreTrainedModel, spec: UncertaintySpec) -> Iterator[StartPass]:
    """Replace the dropouts of the active adapters inside the context, and restore them afterwards.

    Of a model without an adapter, its own dropouts.

    Yields:
        `start_pass(sample, example_ids)`, to be called before each forward pass.

    Raises:
        InputError: An active layer of an adapter is not sampled, adapters are merged or disabled, or nothing drops.
    """
    has_one, masks = has_adapter(model), KeyedMasks(spec, device_of(model))
    layers = sampled_layers(model) if has_one else []
    own = {} if has_one else require_dropout(causal_lm(model), spec.attention_dropout > 0)
    if spec.attention_dropout:
        # Before dropout is replaced: passes of the comparison must not drop anything.
        require_softmax_attention(causal_lm(model))
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for layer, name in layers:
            stack.callback(layer.lora_dropout.__setitem__, name, layer.lora_dropout[name])
            layer.lora_dropout[name] = KeyedDropout(cast(int, layer.in_features), masks).eval()
            if drops_only_in_training(layer, name):
                # The mode of this layer only: inside, no dropout is on but this one.
                cast(nn.Module, layer).training = True
        stack.enter_context(keyed_dropout(causal_lm(model), masks, own))
        if spec.attention_dropout:
            stack.enter_context(attention_dropout(causal_lm(model), masks))
        yield masks.start_pass


@torch.no_grad()
def sample_hidden_states(
    model: PeftModel | PreTrainedModel, batch: Batch, start_pass: StartPass, samples: int, numerics: Numerics
) -> Tensor:
    """Return `hidden_KND`: K dropout samples of the hidden states that predict the response tokens of the batch.

    Args:
        model: Inside `monte_carlo_dropout`.
        batch: On the model's device.
        start_pass: What `monte_carlo_dropout` yields.
        samples: Number of passes (K).
        numerics: Dtype of the passes.
    """
    example_ids = [example.example_id for example in batch.examples]
    states = []
    for sample in range(samples):
        start_pass(sample, example_ids)
        states.append(batch.predicting(hidden_states(model, batch.model_inputs, numerics)))
    return torch.stack(states)
