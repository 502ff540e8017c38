"""The machine that a plan is for: measured, or a card by its data sheet; and the precisions of its rates."""

from dataclasses import dataclass, field, replace

from tokenuq_ml.costs.cards import Card
from tokenuq_ml.costs.efficiency import OF_ONE_CARD, Efficiency, of_measured_rate

BALD_PRECISION = "float32"
"""What BALD is computed in, whatever the study's precision is."""
USABLE_MEMORY = 0.92
"""Assumed share of a device's memory that tensors can have: the rest is the runtime's, and fragmented."""
LINK_EFFICIENCY = 0.7
"""Assumed share of the peak of links, networks and memory."""
DEVICE_TOKENS = 16_384
"""Padded tokens of a batch of inference on an accelerator, of `scoring/batch_threads.py`. Repeated here because that
module imports torch; a test compares them."""


@dataclass(frozen=True)
class Machine:
    """What `matmul_rate` measures, or a data sheet says."""

    flop_per_second: float
    device: str
    precision: str
    threads: int
    precision_reason: str
    batch_tokens: int
    """Padded tokens of an inference batch."""
    others: dict[str, dict] = field(default_factory=dict)
    """Rates in other precisions: precision as the study names it -> resolved `precision`, and `flop_per_second`."""
    card: str | None = None
    """Name in `cards.py` of a card that nothing is measured of."""
    memory: float | None = None
    """Bytes of the memory that its tensors are in; None: not known."""
    memory_rate: float | None = None
    """Bytes per second of that memory; None: not known, and so not counted."""
    efficiency: Efficiency | None = None
    """Default: that of a measured rate on the device."""

    def __post_init__(self):
        if self.efficiency is None:
            object.__setattr__(self, "efficiency", of_measured_rate(self.device))

    def in_precision(self, precision: str) -> "Machine":
        """Return the machine with its rate in another precision that the study names."""
        return replace(self, **self.others.get(precision, {}))

    def share(self, kind: str) -> float:
        """Return the share of the rate that a kind of work reaches."""
        return self.efficiency.share(kind, self.precision)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.precision == "float32" else 2

    @property
    def parallel_batches(self) -> int:
        """Inference batches that run at the same time."""
        return self.threads if self.device == "cpu" else 1


def machine_of(card: Card, precision: str) -> Machine:
    """Return a card as a machine; `precision` is that of training, as a study names it."""
    bfloat16 = {"precision": "bfloat16", "flop_per_second": card.bfloat16}
    float32 = {"precision": "float32", "flop_per_second": card.float32}
    machine = Machine(
        card.bfloat16,
        "cuda",
        "bfloat16",
        1,
        "its data sheet",
        DEVICE_TOKENS,
        {"auto": bfloat16, "bfloat16": bfloat16, "float32": float32},
        card.name,
        card.memory,
        card.memory_rate,
        OF_ONE_CARD[card.name],
    )
    return machine.in_precision(precision)
