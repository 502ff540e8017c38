"""Floating-point operations (FLOPs) of a training step, from the model's architecture.

Counts matrix products, 2 FLOPs per multiply-add; elementwise work (norms, softmax, dropout, the optimiser) is left out.
`docs/costs.md` explains the formulas. Does not import torch.
"""

import json
from dataclasses import dataclass, fields, replace
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
"""Our names of an architecture's sizes -> their keys in Hugging Face configurations."""
_PLAIN_MLP = {"gpt2", "gptj", "gpt_neox", "phi", "starcoder2"}
_EAGER = {"gemma2"}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_RECURRENT = ("state_size", "ssm_state_size", "mamba_d_state", "mamba_d_ssm", "lru_width", "linear_num_value_heads")
"""Sizes of state-space and other recurrent layers."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder with dense layers, which decide its matrix products."""

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
    """flash: half the square of positions, recomputed in the backward pass; eager: the full square, stored."""

    @classmethod
    def from_config(cls, source: str | Path | dict) -> "Architecture":
        """Read the sizes from a Hugging Face `config.json`, its folder, or its contents.

        Raises:
            InputError: it cannot be read, lacks a size, or belongs to a mixture of experts or a recurrent model.
        """
        if isinstance(source, dict):
            config, name = source, "config"
        else:
            path = Path(source)
            name = path / "config.json" if path.is_dir() else path
            try:
                config = json.loads(name.read_text())
            except (OSError, ValueError) as error:
                raise InputError(f"{name}: not a model configuration ({error}); pass a model's config.json") from None
        # Models of text and images have the decoder's sizes in `text_config`.
        config = config.get("text_config", config)
        if any((config.get(key) or 0) > 1 for key in _EXPERTS):
            raise InputError(f"{name}: the costs of a mixture of experts are not modelled; use a dense model")
        if any(config.get(key) for key in _RECURRENT) or config.get("model_type") == "rwkv":
            raise InputError(f"{name}: the costs of recurrent layers are not modelled; use a model with attention only")
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
        """(features in, features out) of a layer's linear maps: query, key, value, output, then those of the MLP."""
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
        """FLOPs of one head product per token: `2 * D * V`."""
        return 2 * self.hidden * self.vocabulary

    def adapter_parameters(self, rank: int) -> int:
        """Return the weights of a LoRA adapter on every linear map of the layers."""
        return self.layers * rank * sum(i + o for i, o in self.matrices)

    def cache_bytes(self, head_bytes: int = 2) -> dict[str, int]:
        """Return the bytes per response token of a teacher's cache by form; `head_bytes`: bytes of a head weight.

        A file has both forms unless the head soft-caps its logits. `logits` is what storing logits would take.
        """
        return {
            # States are always bfloat16; each mean embedding comes with one float32.
            "hidden_states": 2 * self.hidden,
            "mean_embeddings": head_bytes * self.hidden + 4,
            "logits": head_bytes * self.vocabulary,
        }


def with_attention(model: Architecture, attention: str) -> Architecture:
    """Return the sizes with the attention that a study names; `auto`: with the model's own."""
    if attention == "auto":
        return model
    return replace(model, attention="eager" if attention == "eager" else "flash")


PUBLISHED = {
    "Llama-3.2-1B": Architecture(16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
    "Llama-3.1-8B": Architecture(32, 4096, 14_336, 32, 8, 128, 128_256),
    "Llama-3.1-70B": Architecture(80, 8192, 28_672, 64, 8, 128, 128_256),
}
"""Published shapes, for predictions at 1B, 8B and 70B."""


@dataclass(frozen=True)
class Step:
    """What the cost of an optimiser step depends on, summed over its micro-batches."""

    padded_tokens: float
    response_tokens: float
    attended: float
    """Sum over sequences of T^2 / 2, where T is the padded length."""
    mle_share: float = 1.0
    """Share of the response tokens that are trained by cross-entropy."""
    distilled_share: float = 0.0
    """Share of the response tokens that are trained by a divergence."""
    selection_needs_loss: bool = False
    selection_passes: float = 0
    """Forward passes that only select tokens, before those that train."""
    teacher: Teacher = "none"
    lora_rank: int = 32
    records_losses: bool = False
    """Whether losses of tokens that are not trained are computed too, for the record."""
    summed_share: float = 0.0
    """Share of the response tokens that are trained by both, and counted in both shares."""
    selection_needs_divergence: bool = False
    """Whether selection reads the divergence to the teacher of every token."""
    trains_base: bool = False
    """Whether the model's own weights are trained, and not an adapter: then `lora_rank` is 0."""
    recomputes: bool = False
    """Whether the backward pass computes each layer's activations again (gradient checkpointing)."""

    def __post_init__(self):
        if self.distilled_share > 0 and self.teacher == "none":
            raise ValueError("distilled_share is above 0, but teacher is 'none'")


@dataclass(frozen=True)
class Flops:
    """FLOPs by part. The parts are disjoint."""

    forward: float
    head: float
    backward: float
    teacher: float
    selection: float

    @property
    def total(self) -> float:
        """FLOPs of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def head_share(self) -> float:
        """The head's share of the total."""
        return self.head / self.total


def flops(model: Architecture, step: Step) -> Flops:
    """Return the FLOPs of one optimiser step of LoRA on a frozen base model, or of full fine-tuning, by part.

    - forward: the linear maps with their adapters, and attention. Every token counts, since later tokens attend to
      those that are not trained.
    - head: `head_products`, each `2 * D * V`; includes the gradients of the hidden states.
    - backward: the base as in forward; adapters twice (gradients of inputs and of weights); attention 2.5 times (flash
      recomputes the probabilities: five products for two) or twice (eager). The gradient of the first layer's input
      is left out, since it is not needed. Every token counts here too, since gradients reach untrained tokens through
      attention. In full fine-tuning the base counts twice as well, and the first layer's input has a gradient. With
      gradient checkpointing, the forward pass again.
    - teacher: one forward pass of an online teacher, with an adapter of the student's rank.
    - selection: forward passes that only select tokens, with one head product per response token.
    """
    tokens, rank = step.padded_tokens, step.lora_rank
    base = 2 * tokens * model.layers * sum(i * o for i, o in model.matrices)
    adapters = 2 * tokens * model.layers * rank * sum(i + o for i, o in model.matrices)
    # Two products: queries with keys, and probabilities with values.
    attention = 4 * step.attended * model.layers * model.heads * model.head_dim
    attention *= 2 if model.attention == "eager" else 1
    forward = base + adapters + attention
    unneeded = 0.0 if step.trains_base else 2 * tokens * sum(i * o + rank * i for i, o in model.matrices[:3])
    backward = base * (2 if step.trains_base else 1) + 2 * adapters - unneeded
    backward += attention * (2 if model.attention == "eager" else 2.5) + (forward if step.recomputes else 0.0)
    return Flops(
        forward=forward,
        head=head_products(step) * step.response_tokens * model.head_product,
        backward=backward,
        teacher=forward if step.teacher == "online" else 0.0,
        selection=step.selection_passes
        * (forward + (1 + _divergence_first(step)) * step.response_tokens * model.head_product),
    )


def head_products(step: Step) -> float:
    """Return the head products per response token of `kernels.training_loss`, without those of selection passes.

    - Cross-entropy: 2.
    - A divergence: 3 from hidden states, cached or online (one computes the teacher's logits); 2 from mean embeddings.
    - Both on the same token: 3 from hidden states, 2 from mean embeddings.
    - Selection that needs the losses first: 1 more for every token, unless a selection pass computed them. With mean
      embeddings, 2 for every token instead, which give both.
    - Selection that needs the divergence too: 1 more, except from mean embeddings.
    - Recorded losses that are not known otherwise: 1 for each token that is not trained.
    - A head that is trained: 1 more for each trained token, the gradient of the head.
    """
    trained = min(1.0, step.mle_share + step.distilled_share - step.summed_share)
    losses_first = step.selection_needs_loss and not step.selection_passes
    recorded = 1 - trained if step.records_losses and not step.selection_needs_loss else 0.0
    recorded += trained if step.trains_base else 0.0
    if step.teacher == "mean_embeddings":
        return 2.0 if losses_first else 2 * trained + recorded
    first = losses_first * (1 + _divergence_first(step))
    return 2 * step.mle_share + 3 * step.distilled_share - 2 * step.summed_share + first + recorded


def _divergence_first(step: Step) -> int:
    """Return the head products per response token for the teacher's logits that selection reads."""
    return int(step.selection_needs_divergence and step.teacher != "mean_embeddings")
