"""Share of the rate of matrix products that each kind of work reaches, by machine: measured, or assumed.

On a machine that `tokenuq plan` measures, the rate is that of products at the model's shapes; on a card of `cards.py`,
its published peak. Replace an assumption by what `python -m benchmarks.accelerator` measures on the card.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """Shares of a rate, and where they come from."""

    shares: dict[str, float]
    """`train`, `score` and `generate`; `float32`, if it is there, of any work in that precision."""
    is_measured: bool
    source: str

    def share(self, kind: str, precision: str) -> float:
        """Return the share that a kind of work reaches in a precision as torch names it."""
        return self.shares.get("float32" if precision == "float32" else kind, self.shares[kind])

    @property
    def text(self) -> str:
        """The shares, and whether they are measured, in words."""
        listed = ", ".join(f"{kind} {share:g}" for kind, share in self.shares.items())
        return f"{listed}; {'measured' if self.is_measured else 'assumed'}: {self.source}"


TWO_CORES = Efficiency(
    {"train": 0.57, "score": 0.68, "generate": 0.27},
    True,
    "with SmolLM2-135M on two cores, docs/results/benchmarks.md",
)
"""A student's step of 1,100 GFLOP took 5.34 s where products run at 362 GFLOP/s; scoring is of mixed lengths;
steps of decoding ran at 350 tokens/s in batches of 16, at 0.29 GFLOP per token, where products run at 373 GFLOP/s."""

ASSUMED = Efficiency(
    {"train": 0.40, "score": 0.50, "generate": 0.50, "float32": 0.60},
    False,
    "training near the 38% to 43% of the peak at which Llama 3 405B was trained on H100 (arXiv 2407.21783, table 4); "
    "the others are guesses",
)
_FEW_BYTES = Efficiency(
    {**ASSUMED.shares, "train": 0.30, "score": 0.40},
    False,
    "less than on an H100, whose memory delivers 1.4 times the bytes per FLOP of its peak; a guess",
)
ONE_H100 = Efficiency(
    {"train": 0.19, "score": 0.31, "generate": 0.50, "float32": 0.58},
    True,
    "on one H100 at the sizes of Llama-3.2-1B and Gemma-2-2B, docs/results/accelerator.md; generation is a guess",
)
"""Training with transformers' own layers in batches of 16 x 512. Larger models should come closer to the peak."""
ON_CUDA = Efficiency(
    {"train": 0.24, "score": 0.39, "generate": 0.50, "float32": 0.60},
    True,
    "on one H100, docs/results/accelerator.md; generation and float32 are guesses",
)
"""The same as shares of the rate of large products, which is 0.79 of that card's peak."""
BY_CARD = {
    "a100": ASSUMED,
    "h100": ASSUMED,
    "h200": ASSUMED,
    "b200": ASSUMED,
    "l4": _FEW_BYTES,
    "l40s": _FEW_BYTES,
    "4090": ASSUMED,
    "mi300x": ASSUMED,
}
"""Name of a card in `cards.py` -> what work reaches of its peak on a cluster, where nothing is measured yet."""
OF_ONE_CARD = BY_CARD | {"h100": ONE_H100}
"""The same where one card does all the work."""


def of_measured_rate(device: str) -> Efficiency:
    """Return the shares of a measured rate of products that work reaches, on a device as torch names it."""
    return ON_CUDA if device.split(":")[0] == "cuda" else TWO_CORES
