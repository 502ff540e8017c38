"""Measured studies that follow a known rule, and token tables whose quantities are known."""

from collections.abc import Mapping

import polars as pl

from tokenuq_ml.advice.measured import MEASURED
from tokenuq_ml.advice.quantities import QUANTITIES

NOISES, ZIPFS = (0.0, 0.1, 0.2, 0.3, 0.4), (0.5, 1.0, 1.5, 2.0)
READ, UNREAD = "entropy_on_errors", "loss_gap"


def row(study: str, family: str, change: float, ood: float = 0.0, half: float = 0.01, **fields: object) -> dict:
    """One family of a study: its change in and out of distribution, with intervals of one half-width."""
    changes = {
        f"{prefix}change{end}": value + step
        for prefix, value in (("", change), ("ood_", ood))
        for end, step in (("", 0.0), ("_low", -half), ("_high", half))
    }
    empty = dict.fromkeys(MEASURED)
    return {**empty, "study": study, "family": family, "seeds": 5, "metric": "true_kl", **changes, **fields}


def grid(threshold: float = 0.25) -> pl.DataFrame:
    """A 5 x 4 grid: `gentle` beats `mle` by 0.1 where noise exceeds the threshold; `reckless` trades everywhere.

    `entropy_on_errors` is the noise; the other quantities are the same in all cells, or follow the rarity.
    """
    rows = []
    for noise in NOISES:
        for zipf in ZIPFS:
            quantities = {**dict.fromkeys(QUANTITIES, 0.5), READ: noise, UNREAD: zipf}
            own: Mapping[str, object] = {"noise": noise, "zipf": zipf, **quantities}
            study = f"grid_noise{noise:g}_zipf{zipf:g}".replace(".", "p")
            rows.append(row(study, "gentle", -0.1 if noise > threshold else 0.05, **own))
            rows.append(row(study, "reckless", -0.2, ood=0.3, **own))
    return pl.DataFrame(rows, schema=MEASURED)
