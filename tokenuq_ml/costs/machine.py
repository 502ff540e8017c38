"""The machine that a plan is for, and the precisions of its rates."""

from dataclasses import dataclass, field, replace

BALD_PRECISION = "float32"
"""What BALD is computed in, whatever the study's precision is."""


@dataclass(frozen=True)
class Machine:
    """What `matmul_rate` measures."""

    flop_per_second: float
    device: str
    precision: str
    threads: int
    precision_reason: str
    batch_tokens: int
    """Padded tokens of an inference batch."""
    others: dict[str, dict] = field(default_factory=dict)
    """Rates in other precisions: precision as the study names it -> resolved `precision`, and `flop_per_second`."""

    def in_precision(self, precision: str) -> "Machine":
        """Return the machine with its rate in another precision that the study names."""
        return replace(self, **self.others.get(precision, {}))

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.precision == "float32" else 2

    @property
    def parallel_batches(self) -> int:
        """Inference batches that run at the same time."""
        return self.threads if self.device == "cpu" else 1
