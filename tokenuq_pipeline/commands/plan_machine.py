"""The machine that `tokenuq plan` is for: this one, as a child process measures it, or a card by its data sheet."""

import json
import subprocess
import sys

from tokenuq_ml.errors import InputError

MEASURING_S = 300


def card_of(name: str):
    """Return a function like `measure_machine` that gives a card by its data sheet, and measures nothing.

    Raises:
        InputError: no card has the name.
    """
    from tokenuq_ml.costs.cards import card_named
    from tokenuq_ml.costs.machine import machine_of

    card = card_named(name, "--device")
    return lambda architecture, precision, tables="auto": machine_of(card, precision)


def measure_machine(architecture, precision: str, tables: str = "auto"):
    """Measure this machine in the precisions of training, tables and BALD.

    In a child process, because it imports torch.

    Args:
        architecture: gives the shapes of the matrix products.
        precision: of training.
        tables: of the token tables.

    Returns:
        A `Machine`.

    Raises:
        InputError: the child failed or took too long.
    """
    from tokenuq_ml.costs.machine import BALD_PRECISION, Machine

    request = {
        "layer": architecture.matrices,
        "head": (architecture.hidden, architecture.vocabulary),
        "precision": precision,
        "others": sorted({tables, BALD_PRECISION}),
    }
    try:
        child = subprocess.run(
            [sys.executable, "-m", "tokenuq_ml.costs.matmul_rate"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=MEASURING_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"measuring the rate of matrix products took more than {MEASURING_S} s; free some memory and try again"
        ) from None
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise InputError(f"the rate of matrix products could not be measured: {last}")
    return Machine(**json.loads(child.stdout))
