"""Tokenising: 52,000 rows of Alpaca's lengths, and conversations of many turns.

Rows are synthetic: random words of AlpacaEval, in texts whose numbers of characters follow the log-normal distributions
that were fitted to Alpaca's. Runs the stage's own parts, from a stored table to a stored table, with masks and checks
of every row. The rival renders and encodes each row with one call of plain transformers, and finds no masks: a mask
takes three renderings of a row. Each measurement runs in its own process: `python -m benchmarks.tokenization EXAMPLES
OUTPUT` prints a line of JSON.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from benchmarks.common import ALPACA_FILE, Row, alternate, model_folder
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.data.tokenizer_files import load_tokenizer
from tokenuq_ml.stages import tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageRequest
from tokenuq_ml.stages.runner import peak_memory_mib
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES

ROWS = 52_000
FEWER = 10
"""Factor between the two sizes whose memory is compared, and between the two numbers of turns."""
EXCHANGES = 1000
RIVAL_ROWS = 2000
LOG_CHARACTERS = {"question": (4.26, 0.49), "answer": (4.97, 1.36)}
"""Mean and standard deviation of the logarithm of a text's characters, fitted to 5,000 rows of Alpaca."""


class _Reporter:
    """Keeps the result of the stage, and says nothing."""

    def info(self, text: str) -> None:
        """Ignore a line."""

    warning = info

    def done(self, result: AssetResult) -> None:
        """Keep the result."""
        self.result = result


def synthetic_rows(count: int) -> list[Example]:
    """Return rows of one exchange each, the same for the same count."""
    spec = DatasetSpec(
        name="words", format="alpaca_eval", package="eval_framework", file=ALPACA_FILE, sizes={"ood": 200}
    )
    words = [
        word for each in load_examples(spec).examples for turn in each.messages for word in turn["content"].split()
    ]
    draw = random.Random(0)

    def text(kind: str) -> str:
        characters, said = min(draw.lognormvariate(*LOG_CHARACTERS[kind]), 4000), draw.choice(words)
        while len(said) < characters:
            said += " " + draw.choice(words)
        return said

    splits = ("train", "validation", "test")
    return [
        Example(
            f"rows/{number:06d}",
            splits[number % 50 if number % 50 < 3 else 0],
            [{"role": "user", "content": text("question")}, {"role": "assistant", "content": text("answer")}],
        )
        for number in range(count)
    ]


def store(count: int, folder: Path) -> None:
    """Write a table `examples` of synthetic rows."""
    table = pa.Table.from_pylist([row.row for row in synthetic_rows(count)], schema=TABLES["examples"].schema)
    write_table(table, "examples", folder, spec_hash="b", code_version="b")


def tokenize(examples: str, output: str) -> dict[str, float]:
    """Run the stage; return its seconds, tokens per second and this process's peak memory."""
    outputs = {name: f"{output}/{name}" for name in ("tokenized_dataset", "rejected_examples")}
    fields = {"model": "m", "dataset": "rows", "ood": [], "max_length": 512}
    request = StageRequest(
        entrypoint="tokenize_dataset",
        study="b",
        assets={"tokenized_dataset": AssetRequest(fields=fields, code_version="b", outputs=outputs)},
        inputs={"model": str(model_folder()), "examples/rows": examples},
        work_dir=output,
    )
    reporter, started = _Reporter(), time.perf_counter()
    tokenize_dataset.run(request, reporter)
    seconds, metrics = time.perf_counter() - started, reporter.result.metrics
    rows = sum(count for name, count in metrics.items() if name.startswith("examples_"))
    return {"seconds": seconds, "rate": metrics["mean_length"] * rows / seconds, "mib": peak_memory_mib()}


def measure(examples: Path) -> dict[str, float]:
    """Return the result of `tokenize` in a new process."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks.tokenization", str(examples), output]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _conversation(exchanges: int) -> Example:
    rows = synthetic_rows(exchanges)
    return Example("turns/0", "train", [turn for row in rows for turn in row.messages])


def run(repeats: int) -> list[Row]:
    """Return rows for the time, the memory, the rate next to transformers', and the growth with turns."""
    tokenizer = load_tokenizer(model_folder())
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        store(ROWS // FEWER, small)
        store(ROWS, large)
        measured = {small: measure(small), large: measure(large)}
    for path, figures in measured.items():
        print(f"  {path.name}: {figures}", flush=True)
    some, conversations = synthetic_rows(RIVAL_ROWS), ConversationTokenizer(tokenizer)
    short, long = _conversation(EXCHANGES // FEWER), _conversation(EXCHANGES)
    seconds = alternate(
        {
            "ours": lambda: conversations.tokenize(some) and None,
            "transformers": lambda: [tokenizer.apply_chat_template(row.messages) for row in some] and None,
            "short": lambda: conversations.tokenize([short]) and None,
            "long": lambda: conversations.tokenize([long]) and None,
        },
        repeats,
    )
    memory, growth = measured[large]["mib"] / measured[small]["mib"], seconds["long"] / seconds["short"]
    load = f"load average {os.getloadavg()[0]:.1f}"
    return [
        Row(
            f"tokenising {ROWS:,} rows of Alpaca's lengths, table to table ({load})",
            f"{measured[large]['seconds']:.0f} s, {measured[large]['rate']:,.0f} tokens/s",
            "60 s",
            measured[large]["seconds"] / 60,
            "<= 1",
            measured[large]["seconds"] <= 60,
        ),
        Row(
            f"peak MiB of it, {ROWS:,} / {ROWS // FEWER:,} rows",
            f"{measured[large]['mib']:,.0f}",
            f"{measured[small]['mib']:,.0f}",
            memory,
            "<= 1.2",
            memory <= 1.2,
        ),
        Row(
            f"masks and checks of {RIVAL_ROWS:,} rows, seconds / plain apply_chat_template",
            f"{seconds['ours']:.2f} s",
            f"{seconds['transformers']:.2f} s",
            seconds["ours"] / seconds["transformers"],
            "<= 2",
            seconds["ours"] <= 2 * seconds["transformers"],
        ),
        Row(
            f"a conversation of {EXCHANGES:,} / {EXCHANGES // FEWER:,} exchanges, seconds",
            f"{seconds['long']:.2f} s",
            f"{seconds['short']:.2f} s",
            growth,
            f"<= {1.5 * FEWER:g}",
            growth <= 1.5 * FEWER,
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(tokenize(*sys.argv[1:])))
