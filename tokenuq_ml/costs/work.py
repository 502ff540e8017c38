"""The work of one stage: tokens, FLOPs, bytes on disk and in memory, and the seconds that it takes on a machine."""

from dataclasses import dataclass, field

from tokenuq_ml.costs.machine import Machine

EFFICIENCY = {"train": 0.57, "score": 0.68, "generate": 0.14}
"""Share of the rate of plain matrix products that each kind of work reached with SmolLM2-135M on two cores. From
docs/results/benchmarks.md: a student's step of 1,100 GFLOP took 5.34 s where products run at 362 GFLOP/s; scoring is of
mixed lengths; generation ran at 175 tokens/s in batches of 16, at 0.29 GFLOP per token."""
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
    """FLOPs by kind of work, a key of EFFICIENCY."""
    disk: dict[str, float] = field(default_factory=dict)
    """Bytes that stay on disk, by output."""
    memory: dict[str, float] = field(default_factory=dict)
    """Peak bytes in memory, by part."""
    temporary_disk: dict[str, float] = field(default_factory=dict)
    """Bytes on disk while the stage runs, in addition to `disk`."""
    precision: str = ""
    """The precision of the computation, as the study names it; empty: the precision of training."""

    def seconds(self, machine: Machine, starts: bool) -> float | None:
        """Return the wall-clock time on `machine`.

        Args:
            machine: its rate of matrix products.
            starts: whether to count the start of the child process too.
        """
        if self.flop is None:
            return None
        machine = machine and machine.in_precision(self.precision)
        computing = sum(flop / (machine.flop_per_second * EFFICIENCY[kind]) for kind, flop in self.flop.items())
        return computing + (STARTUP_S if starts else 0.0)
