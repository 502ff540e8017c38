"""What the intervals of two changes say of a family: one that is wanted to fall, and one that must not rise.

Phase diagrams and advice share it. Does not import torch.
"""

from tokenuq_ml.evaluation.paired import Estimate

VERDICTS = BEATS, TRADES, NO_GAIN, LOSES, UNDECIDED = "beats", "trades", "no gain", "loses", "undecided"


def verdict_of(wanted: Estimate, kept: Estimate, margin: float = 0.0, kept_margin: float | None = None) -> str:
    """Return what intervals say of a family against the baseline; less is better.

    - `beats`: the wanted change is below 0, and the kept one is shown to lose no more than its margin.
    - `trades`: the wanted change is below 0, and the kept one above 0.
    - `loses`: the wanted change is above 0.
    - `no gain`: the interval of the wanted change contains 0, and its gain is shown to be less than the margin.
    - `undecided`: anything else.

    Args:
        wanted: the change that shall be below 0, such as that in distribution.
        kept: the change that shall not be above 0, such as that out of distribution.
        margin: nats of the wanted change that count as no difference.
        kept_margin: the same of the kept change. None: the kept change need only not be shown to be above 0.
    """
    if wanted.low > 0:
        return LOSES
    if wanted.high < 0:
        if kept_margin is None:
            return TRADES if kept.low > 0 else BEATS
        if kept.high <= kept_margin:
            return BEATS
        return TRADES if kept.low > 0 else UNDECIDED
    return NO_GAIN if wanted.low > -margin else UNDECIDED
