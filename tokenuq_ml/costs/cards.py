"""Published peaks of accelerators, for plans of cards and clusters.

From NVIDIA's data sheets of the A100 (80 GB SXM), H100 (SXM), H200 (SXM), B200 (DGX B200, per GPU), L4 and L40S, its
white paper of the Ada architecture (RTX 4090, appendix A: bfloat16 with float32 sums), and AMD's data sheet of the
MI300X. Rates are of dense products: data sheets that print "with sparsity" print twice of them. float32 is that of the
plain units, since BALD takes no tf32 (`models/float32_passes.py`). NVLink and PCIe are printed as the sum of both
directions; `link` is one direction. `network` is one port per GPU, as in DGX systems: 200 Gbit/s (A100), 400 Gbit/s
(H100, H200, B200, MI300X platforms); L4, L40S and RTX 4090 have no usual one, so 100 Gbit/s is an assumption.
"""

from dataclasses import dataclass

from tokenuq_ml.errors import InputError


@dataclass(frozen=True)
class Card:
    """Peaks of one accelerator: FLOP/s, bytes, and bytes per second."""

    name: str
    bfloat16: float
    """FLOP/s of dense products in bfloat16."""
    float32: float
    """FLOP/s in float32."""
    memory: float
    """Bytes."""
    memory_rate: float
    """Bytes per second of its own memory."""
    link: float
    """Bytes per second to the other cards of a node, one direction."""
    network: float
    """Bytes per second to other nodes, one direction."""


CARDS = {
    card.name: card
    for card in (
        Card("a100", 312e12, 19.5e12, 80e9, 2.039e12, 300e9, 25e9),
        Card("h100", 989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9),
        Card("h200", 989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9),
        Card("b200", 2250e12, 75e12, 180e9, 8.0e12, 900e9, 50e9),
        Card("l4", 121e12, 30.3e12, 24e9, 0.3e12, 32e9, 12.5e9),
        Card("l40s", 362e12, 91.6e12, 48e9, 0.864e12, 32e9, 12.5e9),
        Card("4090", 165.2e12, 82.6e12, 24e9, 1.008e12, 32e9, 12.5e9),
        Card("mi300x", 1307e12, 163.4e12, 192e9, 5.3e12, 448e9, 50e9),
    )
}


def card_named(text: str, where: str) -> Card:
    """Return the card of a name as people write it: `H100`, `RTX 4090`, `rtx-4090`.

    Args:
        text: the name.
        where: the option that it comes from, for the message.

    Raises:
        InputError: it is not known.
    """
    name = text.lower().replace("-", " ").replace("_", " ").removeprefix("nvidia ").removeprefix("rtx").strip()
    if name not in CARDS:
        raise InputError(f"{where}: {text!r} is not known; there are {', '.join(CARDS)}")
    return CARDS[name]
