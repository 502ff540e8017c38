"""Monte-Carlo dropout over LoRA adapters: K stochastic passes, BALD a token.

Llama and Gemma have no dropout that `train()` would switch on, so PEFT's own
`lora_dropout` modules are replaced by ours while the model stays in `eval()`. Masks come
from generators keyed by (seed, sample, layer, example), so that they depend neither on
how examples are batched nor on what else was drawn. Does not know what BALD is good for.

Shapes: B sequences, T positions, D features, N response tokens, K samples.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polars as pl
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tokenuq_ml.batching import Batch, TokenizedExample, length_batches
from tokenuq_ml.kernels import monte_carlo_scores
from tokenuq_ml.models import Numerics, head_of, hidden_states
from tokenuq_ml.specs import UncertaintySpec


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of (seed, sample, layer, example), and of nothing else.

    `mask="sequence"` drops the same features at every position of an example: one sample
    of the adapter's weights, as the theory wants (Gal and Ghahramani 2016, arXiv
    1506.02142). `mask="position"` draws afresh for each position.
    """

    def __init__(self, layer: str, spec: UncertaintySpec):
        super().__init__()
        self.layer, self.spec = layer, spec
        self.sample, self.example_ids = 0, []

    def forward(self, x_BTD: Tensor) -> Tensor:
        keep = 1 - self.spec.dropout
        positions = 1 if self.spec.mask == "sequence" else x_BTD.shape[1]
        masks = [
            torch.bernoulli(torch.full((positions, x_BTD.shape[-1]), keep), generator=self._generator(example_id))
            for example_id in self.example_ids
        ]
        # Rows are drawn position by position, so that a longer padding only adds rows at the end.
        return x_BTD * (torch.stack(masks).to(x_BTD.device, x_BTD.dtype) / keep)

    def _generator(self, example_id: str) -> torch.Generator:
        key = f"{self.spec.seed}|{self.sample}|{self.layer}|{example_id}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest()))


@contextmanager
def monte_carlo_dropout(model: PeftModel, spec: UncertaintySpec) -> Iterator[Callable[[int, list[str]], None]]:
    """Replaces the active adapter's dropouts; yields `draw(sample, example_ids)`, to be called before each pass.

    Raises:
        ValueError: no LoRA layer carries the active adapter, so that nothing would be dropped.
    """
    name = model.active_adapter
    replaced: list[tuple[LoraLayer, nn.Module]] = []
    dropouts: list[KeyedDropout] = []
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_dropout:
            dropout = KeyedDropout(path, spec)
            replaced.append((module, module.lora_dropout[name]))
            module.lora_dropout[name] = dropout
            dropouts.append(dropout)
    if not dropouts:
        raise ValueError(f"adapter {name!r} has no LoRA layer to drop features in: BALD would be 0 everywhere")

    def draw(sample: int, example_ids: list[str]) -> None:
        for dropout in dropouts:
            dropout.sample, dropout.example_ids = sample, example_ids

    was_training = model.training
    model.eval()
    try:
        yield draw
    finally:
        for module, original in replaced:
            module.lora_dropout[name] = original
        model.train(was_training)


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
    max_tokens: int = 2048,
) -> pl.DataFrame:
    """The `token_uncertainty` table of `examples` under the active adapter."""
    head = head_of(model)
    rows: list[pl.DataFrame] = []
    with monte_carlo_dropout(model, spec) as draw:
        for batch in length_batches(examples, max_tokens):
            batch = batch.to(numerics.device)
            hidden_KND = sample_hidden_states(model, batch, draw, spec.samples, numerics)
            scores = monte_carlo_scores(hidden_KND, head, batch.label_N)
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
