"""The work of one stage: tokens, FLOPs, bytes on disk and in memory, and the seconds that it takes on a machine."""

from dataclasses import dataclass, field

from tokenuq_ml.costs.machine import LINK_EFFICIENCY, Machine

STARTUP_S = 10.0
"""Seconds that a child process takes to import its modules and to load the model and the data."""


@dataclass(frozen=True)
class Work:
    """The work of one stage.

    `flop` is None if the model's sizes are not known; disk and memory that depend on them are then left out.
    """

    tokens: float = 0.0
    """Tokens that pass through a model, or that are written; without padding."""
    flop: dict[str, float] | None = field(default_factory=dict)
    """FLOPs by kind of work, a share of `Efficiency`."""
    disk: dict[str, float] = field(default_factory=dict)
    """Bytes that stay on disk, by output."""
    memory: dict[str, float] = field(default_factory=dict)
    """Peak bytes in memory, by part."""
    temporary_disk: dict[str, float] = field(default_factory=dict)
    """Bytes on disk while the stage runs, in addition to `disk`."""
    precision: str = ""
    """The precision of the computation, as the study names it; empty: the precision of training."""
    reads: float = 0.0
    """Bytes of weights that generation reads: all of them for each token of a batch of answers."""

    def seconds(self, machine: Machine, starts: bool) -> float | None:
        """Return the wall-clock time on `machine`.

        Args:
            machine: its rate of matrix products.
            starts: whether to count the start of the child process too.
        """
        if self.flop is None:
            return None
        if not self.flop:
            return STARTUP_S if starts else 0.0
        machine = machine.in_precision(self.precision)
        seconds = {kind: flop / (machine.flop_per_second * machine.share(kind)) for kind, flop in self.flop.items()}
        if machine.memory_rate is not None and "generate" in seconds:
            seconds["generate"] = max(seconds["generate"], self.reads / (LINK_EFFICIENCY * machine.memory_rate))
        return sum(seconds.values()) + (STARTUP_S if starts else 0.0)
