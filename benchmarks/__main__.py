"""Run the benchmarks and write docs/results/benchmarks.md: `python -m benchmarks [name ...]`.

Contestants take turns. The first turn is a warm-up and is not counted; `--repeats` turns follow.
"""

import argparse
import os
import platform
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import REPEATS, Row
from benchmarks.scoring import matmul_rate
from tokenuq_ml.models.numerics import resolve_numerics

NAMES = (
    *("training_step", "scoring", "generation", "uncertainty", "memory", "scaling", "queries", "tokenization"),
    "report_page",
)
PACKAGES = ("torch", "transformers", "peft", "trl", "lm_eval")


def markdown(rows: list[Row], rate: float, repeats: int) -> str:
    """Return the page: what was measured on which machine, and one table row per result."""
    numerics = resolve_numerics()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    texts = "Alpaca" if "TOKENUQ_BENCH_ALPACA" in os.environ else "AlpacaEval with GPT-4's outputs"
    lines = [
        "# Benchmarks",
        "",
        "```bash",
        "make bench",
        "```",
        "",
        f"This command measured the table on {date.today()}: {platform.machine()}, {numerics.threads} threads, "
        f"{str(numerics.dtype).removeprefix('torch.')} ({numerics.reason}); {packages}. "
        f"On this machine, a square matrix product of size 2,048 runs at {rate:,.0f} GFLOP/s.",
        "",
        "SmolLM2-135M-Instruct, LoRA rank 32. Contestants take turns within one process, or in separate processes. "
        f"Values are medians of {repeats} turns after one warm-up turn. Texts of mixed lengths: {texts}. On other "
        "machines only the ratios are meaningful.",
        "",
        "| measure | ours | rival | ratio | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.measure} | {row.ours} | {row.rival} | {row.ratio:.2f} | {row.target} | {met} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to run: {', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="counted turns per contestant (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/benchmarks.md"), help="page to write")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown benchmarks: {', '.join(sorted(unknown))}; allowed: {', '.join(NAMES)}")
    torch.manual_seed(0)
    rate, rows = matmul_rate(), []
    for name in arguments.names or NAMES:
        print(f"{name}", flush=True)
        rows += import_module(f"benchmarks.{name}").run(arguments.repeats)
        # Written after each benchmark, so that an interrupted run keeps its results.
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(markdown(rows, rate, arguments.repeats))
    print(arguments.output.read_text())


if __name__ == "__main__":
    main()
