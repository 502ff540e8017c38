"""How threads of PyTorch's OpenMP wait for each other.

PyTorch's wheels for Linux bring GNU's OpenMP, whose threads spin for about 10 ms before they sleep. On a machine with
other work, a thread that spins takes the processor from the thread that it waits for, several thousand times in a
training step. A shorter spin outlasts the gaps between operations, so that it costs nothing on an idle machine
(docs/costs.md has figures).

OpenMP reads the variables when it is loaded, so they are part of the environment that a stage starts with. Does not
import torch.
"""

from collections.abc import Mapping

SPIN = "GOMP_SPINCOUNT"
CHOSEN = (SPIN, "OMP_WAIT_POLICY")
"""Variables by which a person chooses; other OpenMP libraries read the second one only."""
SPINS = 10_000
"""Some 0.1 ms."""


def thread_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to a stage's environment: those of a person, else a short spin."""
    given = {name: environment[name] for name in CHOSEN if environment.get(name)}
    return given or {SPIN: str(SPINS)}
