"""FLOPs that a computation must do, and the share of a card's peak that they reach (model FLOPs utilisation).

With P the weights of the layers: 4 P per token for a step of LoRA, 6 P for full training, 2 P for a forward pass, plus
attention (the causal half of the square of positions) and head products. What is recomputed is not counted, and so are
the adapters' own products, norms and softmax: the same for every contestant.
"""

from benchmarks.accelerator.shapes import Shape
from tokenuq_ml.costs.cards import CARDS, Card


def step_flops(shape: Shape, full: bool = False, online_teacher: bool = False) -> float:
    """Return the FLOPs of a training step: forward, twice that backward for attention, two products with the head.

    Args:
        shape: model and batch.
        full: every weight is trained, the head included; default: LoRA.
        online_teacher: adds a forward pass and a head product per response token.
    """
    model = shape.architecture
    head = (3 if full else 2) * shape.response_tokens * model.head_product
    total = (6 if full else 4) * _layer_weights(shape) * shape.tokens + 3 * _attention(shape) + head
    return total + (pass_flops(shape) if online_teacher else 0.0)


def pass_flops(shape: Shape) -> float:
    """Return the FLOPs of a forward pass with a head product per response token: of scoring, or of a sample of BALD."""
    head = shape.response_tokens * shape.architecture.head_product
    return 2 * _layer_weights(shape) * shape.tokens + _attention(shape) + head


def _layer_weights(shape: Shape) -> int:
    model = shape.architecture
    return model.layers * sum(features_in * features_out for features_in, features_out in model.matrices)


def _attention(shape: Shape) -> float:
    """Return the FLOPs of attention in a forward pass: two products over half the square of positions."""
    model = shape.architecture
    attended = shape.sequences * shape.length**2 / 2
    return 4 * attended * model.layers * model.heads * model.head_dim


def card_of(device_name: str) -> Card | None:
    """Return the card that a driver's name of a device means, as in `NVIDIA H100 80GB HBM3`; None if it is unknown."""
    words = device_name.lower().replace("-", " ").split()
    return next((card for name, card in CARDS.items() if name in words), None)
