"""Floating-point operations (FLOPs) of a training step, from the model's architecture.

Counts matrix products, 2 FLOPs per multiply-add, and nothing elementwise (norms, softmax, dropout, the optimiser).
Does not import torch. `docs/costs.md` explains the formulas.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tokenuq_ml.errors import InputError

Teacher = Literal["none", "mean_embeddings", "hidden_states", "online"]
Selection = Literal["all", "static", "dynamic"]

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "intermediate": ("intermediate_size", "n_inner"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
"""What Hugging Face configurations call an architecture's numbers."""
_PLAIN_MLP = {"gpt2", "gptj", "gpt_neox", "phi", "starcoder2"}
_EAGER = {"gemma2"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder with dense layers, from which its products follow."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated_mlp: bool = True
    """Three matrices (gate, up, down) instead of two."""
    tied: bool = False
    """The head is the embedding matrix: fewer parameters, the same FLOPs."""
    attention: Literal["flash", "eager"] = "flash"
    """flash: half the square of positions, made again on the way back; eager: the whole square, kept."""

    @classmethod
    def from_config(cls, source: str | Path | dict) -> "Architecture":
        """Of a Hugging Face `config.json`, or of a folder that holds one, or of its contents.

        Raises:
            InputError: it cannot be read, lacks a number, or is of a mixture of experts.
        """
        if isinstance(source, dict):
            config, name = source, "config"
        else:
            path = Path(source)
            name = path / "config.json" if path.is_dir() else path
            try:
                config = json.loads(name.read_text())
            except (OSError, ValueError) as error:
                raise InputError(f"{name}: is no model configuration ({error}); pass a model's config.json") from None
        # Models of text and images keep the decoder's numbers apart.
        config = config.get("text_config", config)
        if any((config.get(key) or 0) > 1 for key in _EXPERTS):
            raise InputError(f"{name}: is of a mixture of experts, whose costs are not modelled; use a dense model")
        found = {ours: next((config[key] for key in keys if config.get(key)), None) for ours, keys in _NAMES.items()}
        if found["intermediate"] is None and "n_embd" in config:
            found["intermediate"] = 4 * config["n_embd"]
        for ours, value in found.items():
            if not isinstance(value, int):
                raise InputError(f"{name}: has no {' or '.join(_NAMES[ours])}; pass the config.json of a decoder")
        kind = config.get("model_type")
        return cls(
            **found,
            kv_heads=config.get("num_key_value_heads") or found["heads"],
            head_dim=config.get("head_dim") or found["hidden"] // found["heads"],
            gated_mlp=kind not in _PLAIN_MLP,
            tied=config.get("tie_word_embeddings", True),
            attention="eager" if kind in _EAGER else "flash",
        )

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(features in, features out) of a layer's linear maps: query, key, value, output, then the MLP's."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        into, out_of = (self.hidden, self.intermediate), (self.intermediate, self.hidden)
        attention = ((self.hidden, query), (self.hidden, keys), (self.hidden, keys), (query, self.hidden))
        return (*attention, *((into,) * (2 if self.gated_mlp else 1)), out_of)

    @property
    def parameters(self) -> int:
        """Weights of embeddings, layers, RMS norms and head; no biases, no positions."""
        layer = sum(i * o for i, o in self.matrices) + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def head_product(self) -> int:
        """FLOPs of one product with the head, a token: `2 * D * V`."""
        return 2 * self.hidden * self.vocabulary

    def cache_bytes(self, head_bytes: int = 2) -> dict[str, int]:
        """Bytes of a teacher's cache a response token by its form, for a head of `head_bytes` a number.

        A file holds both forms where the head does not soft-cap; `logits` is what it spares.
        """
        return {
            # The states are always bfloat16; beside the means lies one float32.
            "hidden_states": 2 * self.hidden,
            "mean_embeddings": head_bytes * self.hidden + 4,
            "logits": head_bytes * self.vocabulary,
        }


PUBLISHED = {
    "Llama-3.2-1B": Architecture(16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
    "Llama-3.1-8B": Architecture(32, 4096, 14_336, 32, 8, 128, 128_256),
    "Llama-3.1-70B": Architecture(80, 8192, 28_672, 64, 8, 128, 128_256),
}
"""Published shapes for predictions at 1B, 8B and 70B."""


@dataclass(frozen=True)
class Step:
    """An optimiser step over all its micro-batches, as far as its cost depends on it."""

    padded_tokens: float
    response_tokens: float
    attended: float
    """Sum over sequences of T^2 / 2, T as padded."""
    mle_share: float = 1.0
    """Of the response tokens, those trained by cross-entropy."""
    distilled_share: float = 0.0
    """Of the response tokens, those trained by a divergence; no token is both."""
    selection_needs_loss: bool = False
    selection_passes: float = 0
    """Forward passes that only select, before those that train."""
    teacher: Teacher = "none"
    lora_rank: int = 32
    records_losses: bool = False
    """Losses of tokens that are not trained are computed too, for the record."""

    def __post_init__(self):
        if self.distilled_share > 0 and self.teacher == "none":
            raise ValueError("tokens are distilled, and the teacher is 'none'")


@dataclass(frozen=True)
class Flops:
    """FLOPs by part; the parts are disjoint."""

    forward: float
    head: float
    backward: float
    teacher: float
    selection: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def head_share(self) -> float:
        return self.head / self.total


def flops(model: Architecture, step: Step) -> Flops:
    """FLOPs of one optimiser step of LoRA on a frozen base model, by part.

    - forward: the linear maps with their adapters and attention, over every token: later tokens attend to
      those that are not trained.
    - head: `head_products`, each `2 * D * V`; gradients of the hidden states are among them.
    - backward: the same as forward, adapters twice (input and weights), attention 2.5 times (flash, which makes
      the probabilities again: five products for two) or twice (eager); less the gradient of the first layer's
      input, which nobody needs. Over every token too: the gradient reaches those that are not trained through
      attention.
    - teacher: one forward pass of an online teacher, with an adapter of the student's rank.
    - selection: forward passes that only select, with a head product a response token.
    """
    tokens, rank = step.padded_tokens, step.lora_rank
    base = 2 * tokens * model.layers * sum(i * o for i, o in model.matrices)
    adapters = 2 * tokens * model.layers * rank * sum(i + o for i, o in model.matrices)
    # Two products, of queries with keys and of probabilities with values.
    attention = 4 * step.attended * model.layers * model.heads * model.head_dim
    attention *= 2 if model.attention == "eager" else 1
    forward = base + adapters + attention
    unneeded = 2 * tokens * sum(i * o + rank * i for i, o in model.matrices[:3])
    backward = base + 2 * adapters + attention * (2 if model.attention == "eager" else 2.5) - unneeded
    return Flops(
        forward=forward,
        head=head_products(step) * step.response_tokens * model.head_product,
        backward=backward,
        teacher=forward if step.teacher == "online" else 0.0,
        selection=step.selection_passes * (forward + step.response_tokens * model.head_product),
    )


def head_products(step: Step) -> float:
    """Products with the head that `kernels.training_loss` makes, a response token; those of selection passes left out.

    Cross-entropy 2; a divergence 3 from hidden states, cached or online (the teacher's logits are one of them),
    2 from mean embeddings; and 1 more for every token where selection needs the losses first, unless mean
    embeddings give both in 2 for every token. After a selection pass the losses are known. Where they are not and
    are recorded: 1 for those that are not trained.
    """
    trained = min(1.0, step.mle_share + step.distilled_share)
    losses_first = step.selection_needs_loss and not step.selection_passes
    recorded = 1 - trained if step.records_losses and not step.selection_needs_loss else 0.0
    if step.teacher == "mean_embeddings":
        return 2.0 if losses_first else 2 * trained + recorded
    return 2 * step.mle_share + 3 * step.distilled_share + losses_first + recorded
