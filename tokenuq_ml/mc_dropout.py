"""Monte-Carlo dropout over LoRA adapters: K stochastic passes, BALD a token.

Llama and Gemma have no dropout that `train()` would switch on, so PEFT's own
`lora_dropout` modules are replaced by ours while the model stays in `eval()`. Masks come
from generators keyed by (seed, sample, layer, example), so that they depend neither on
how examples are batched nor on what else was drawn. Does not know what BALD is good for.

Shapes: B sequences, T positions, D features, N response tokens, K samples.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import polars as pl
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenuq_ml.batching import Batch, TokenizedExample, length_batches
from tokenuq_ml.inference import fast_inference
from tokenuq_ml.kernels import MonteCarloScores, monte_carlo_scores
from tokenuq_ml.lora_dropout import masked
from tokenuq_ml.models import Numerics, causal_lm, head_of, hidden_states
from tokenuq_ml.parallel import batch_tokens, map_batches, side_by_side
from tokenuq_ml.specs import UncertaintySpec

STATES_BYTES = 256 * 2**20
"""Budget for the hidden states of all samples of a batch."""


class KeyedMasks:
    """Masks that are a function of (seed, sample, layer, example), and of nothing else.

    Which sample of which examples is under way is each thread's own.
    """

    def __init__(self, spec: UncertaintySpec):
        self.spec = spec
        self.features = 0
        self._own = threading.local()

    def add(self, features: int) -> slice:
        """Where the input features of one more layer lie among those of all layers."""
        self.features += features
        return slice(self.features - features, self.features)

    def draw(self, sample: int, example_ids: list[str]) -> None:
        """Says whose masks the calling thread's next forward pass is to have."""
        self._own.sample, self._own.example_ids = sample, example_ids
        if self.spec.mask == "sequence" and self.features:
            # Of all layers at once: a generator for each layer costs more than its few draws.
            rows = [self.kept("all layers", name, self.spec.dropout, 1, self.features) for name in example_ids]
            self._own.kept_B1F = _all_ones(torch.stack(rows))

    @property
    def example_ids(self) -> list[str]:
        return self._own.example_ids

    def of_sequences(self, features: slice) -> Tensor:
        """int16 `[B, 1, I]`, all ones where kept, of the layer whose input `features` are."""
        return self._own.kept_B1F[:, :, features]

    def kept(self, layer: str, example_id: str, p: float, rows: int, columns: int) -> Tensor:
        """Bool `[rows, columns]`, false with probability `p`; drawn row by row, so that more rows add to the end.

        Sixteen bits a draw: `p` is met to within 2^-17.
        """
        key = f"{self.spec.seed}|{self._own.sample}|{layer}|{example_id}".encode()
        seed = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), "<u4")
        words = np.random.SFC64(seed).random_raw(-(-rows * columns // 4)).view("<u2")[: rows * columns]
        return torch.from_numpy(words >= round(p * _LEVELS)).view(rows, columns)


_LEVELS = 2**16


def _all_ones(kept: Tensor) -> Tensor:
    """int16, all ones where true."""
    return kept.to(torch.int16).neg_()


class KeyedDropout(nn.Module):
    """LoRA's dropout, by keyed masks.

    `mask="sequence"` drops the same features at every position of an example: one sample
    of the adapter's weights, as the theory wants (Gal and Ghahramani 2016, arXiv
    1506.02142). `mask="position"` draws afresh for each position.
    """

    def __init__(self, layer: str, features: int, masks: KeyedMasks):
        super().__init__()
        self.layer, self.features, self.masks = layer, masks.add(features), masks
        self.scale = _LEVELS / (_LEVELS - round(masks.spec.dropout * _LEVELS))

    def kept(self, x_BTI: Tensor) -> Tensor:
        """int16 `[B, 1 or T, I]`, all ones where kept."""
        if self.masks.spec.mask == "sequence":
            return self.masks.of_sequences(self.features).to(x_BTI.device)
        shape = (self.masks.spec.dropout, x_BTI.shape[1], x_BTI.shape[2])
        kept = [self.masks.kept(self.layer, example_id, *shape) for example_id in self.masks.example_ids]
        return _all_ones(torch.stack(kept).to(x_BTI.device))

    def forward(self, x_BTI: Tensor) -> Tensor:
        return masked(x_BTI, self.kept(x_BTI)) * self.scale

    def project(self, x_BTI: Tensor, a_rI: Tensor, scaling: float) -> Tensor:
        """`scaling * dropout(x) @ a.T`: it is the small product that is scaled."""
        return (masked(x_BTI, self.kept(x_BTI)) @ a_rI.to(x_BTI.dtype).T).mul_(self.scale * scaling)


@contextmanager
def monte_carlo_dropout(model: PeftModel, spec: UncertaintySpec) -> Iterator[Callable[[int, list[str]], None]]:
    """Replaces the active adapter's dropouts; yields `draw(sample, example_ids)`, to be called before each pass.

    Raises:
        ValueError: no LoRA layer carries the active adapter, so that nothing would be dropped.
    """
    name, masks = model.active_adapter, KeyedMasks(spec)
    replaced: list[tuple[LoraLayer, nn.Module]] = []
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_dropout:
            replaced.append((module, module.lora_dropout[name]))
            module.lora_dropout[name] = KeyedDropout(path, module.in_features, masks)
    if not replaced and not spec.attention_dropout:
        raise ValueError(f"adapter {name!r} has no LoRA layer to drop features in: BALD would be 0 everywhere")

    was_training = model.training
    model.eval()
    try:
        with attention_dropout(causal_lm(model), masks) if spec.attention_dropout else nullcontext():
            yield masks.draw
    finally:
        for module, original in replaced:
            module.lora_dropout[name] = original
        model.train(was_training)


ATTENTION = "tokenuq_keyed_dropout"


@contextmanager
def attention_dropout(model: PreTrainedModel, masks: KeyedMasks) -> Iterator[None]:
    """Inside, attention probabilities are dropped by keyed masks; the implementation is an eager one."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, partial(_attention, masks))
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(masks: KeyedMasks, module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Softmax attention whose probabilities are dropped: keys for all queries alike, or afresh for each query.

    `[B, T, H, F]` from queries `[B, H, T, F]`, and keys and values of as many heads or fewer.
    """
    shared, spec = query.shape[1] // key.shape[1], masks.spec
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    heads, length = query.shape[1], key.shape[2]
    p_BHTT = torch.softmax(scores, -1, dtype=torch.float32)
    layer = f"attention {module.layer_idx}"
    queries = 1 if spec.mask == "sequence" else length
    kept = [
        # Head by head, each a stream of its own: a longer padding only adds to its end.
        torch.stack([_causal(masks, f"{layer} {head}", example_id, queries, length) for head in range(heads)])
        for example_id in masks.example_ids
    ]
    p_BHTT = p_BHTT * torch.stack(kept).to(p_BHTT.device) / (1 - spec.attention_dropout)
    return (p_BHTT.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def _causal(masks: KeyedMasks, layer: str, example_id: str, queries: int, length: int) -> Tensor:
    """`[queries, length]` of one head. A query's keys are a row of a triangle, so that padding alters nothing."""
    p = masks.spec.attention_dropout
    if queries == 1:
        return masks.kept(layer, example_id, p, length, 1).T
    kept = torch.ones(length, length, dtype=torch.bool)
    rows, columns = torch.tril_indices(length, length)
    kept[rows, columns] = masks.kept(layer, example_id, p, len(rows), 1)[:, 0]
    return kept


@torch.no_grad()
def sample_hidden_states(
    model: PeftModel, batch: Batch, draw: Callable[[int, list[str]], None], samples: int, numerics: Numerics
) -> Tensor:
    """`hidden_KND`: K dropout samples of the states that predict the batch's response tokens."""
    example_ids = [example.example_id for example in batch.examples]
    states = []
    for sample in range(samples):
        draw(sample, example_ids)
        states.append(batch.predicting(hidden_states(model, batch.model_inputs, numerics)))
    return torch.stack(states)


def token_uncertainty(
    model: PeftModel,
    examples: list[TokenizedExample],
    spec: UncertaintySpec,
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """The `token_uncertainty` table of `examples` under the active adapter.

    The K hidden states of a batch's tokens are held at once; batches are smaller where they would not fit
    `STATES_BYTES`, so that memory does not grow with K.
    """
    head = head_of(model)
    a_token = spec.samples * head.weight_VD.shape[1] * head.weight_VD.element_size()
    max_tokens = min(max_tokens or batch_tokens(numerics), max(1, STATES_BYTES // a_token))
    rows: list[pl.DataFrame] = []
    # The fast passes first: they are tried against the model's own attention, with nothing dropped.
    with fast_inference(causal_lm(model)), monte_carlo_dropout(model, spec) as draw:

        def sampled(batch: Batch) -> tuple[Batch, MonteCarloScores]:
            hidden_KND = sample_hidden_states(model, batch, draw, spec.samples, numerics)
            return batch, monte_carlo_scores(hidden_KND, head, batch.label_N)

        batches = length_batches(examples, max_tokens, side_by_side(model, numerics))
        for batch, scores in map_batches(sampled, batches, model, numerics):
            example_ids, positions = zip(*batch.keys, strict=True)
            rows.append(
                pl.DataFrame(
                    {
                        "example_id": list(example_ids),
                        "position": list(positions),
                        "predictive_entropy": scores.predictive_entropy_N.cpu().numpy(),
                        "expected_entropy": scores.expected_entropy_N.cpu().numpy(),
                        "bald": scores.bald_N.cpu().numpy(),
                        "mc_loss": scores.mc_loss_N.cpu().numpy(),
                    }
                ).with_columns(n_samples=pl.lit(spec.samples, pl.Int16))
            )
            progress(sum(len(example.input_ids) for example in batch.examples) * spec.samples)
    return pl.concat(rows)
