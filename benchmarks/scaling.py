"""Reading, scoring and writing tables at 1x, 10x and 100x the data: tokens per second and peak memory.

Uses the parts of the pipeline's stage, from a stored dataset to a stored table, with only the model's first two layers:
the cheaper the forward pass, the more reading and writing count. Each measurement runs in its own process:
`python -m benchmarks.scaling DATASET OUTPUT` prints a line of JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import polars as pl

from benchmarks.common import Row, gsm_examples, model_folder
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.stages.loss_tables import with_categories
from tokenuq_ml.stages.losses_and_states import stored_shards
from tokenuq_ml.stages.runner import peak_memory_mib
from tokenuq_ml.tables.parquet import TableWriter, write_table

UNIT = 40
STAMP = {"spec_hash": "b", "code_version": "b"}


def score(dataset: str, output: str) -> dict[str, float]:
    """Score a stored dataset into a table; return tokens per second and this process's peak memory."""
    model, numerics = load_model(model_folder())
    model.model.layers = model.model.layers[:2]
    tokenizer = load_tokenizer(model_folder())
    # A warm-up, which is not timed.
    score_examples(model, list(islice(StoredExamples(dataset), UNIT)), numerics)
    started, tokens = time.perf_counter(), 0
    with TableWriter("token_losses", output, **STAMP) as table:
        for shard in stored_shards(dataset, numerics):
            rows = score_examples(model, shard, numerics)
            rows = rows.with_columns(base_loss="loss", base_entropy="entropy")
            table.append(with_categories(rows, tokenizer))
            tokens += sum(len(example.input_ids) for example in shard)
    return {"rate": tokens / (time.perf_counter() - started), "mib": peak_memory_mib()}


def store(times: int, folder: Path) -> None:
    """Write a `tokenized_dataset` that holds the same texts `times` times."""
    examples = gsm_examples(UNIT)
    rows = [
        {
            "example_id": f"{n:04d}/{example.example_id}",
            "dataset": example.dataset,
            "split": example.split,
            "input_ids": example.input_ids,
            "response_mask": example.response_mask,
        }
        for n in range(times)
        for example in examples
    ]
    write_table(pl.DataFrame(rows), "tokenized_dataset", folder, **STAMP)


def measure(dataset: Path) -> dict[str, float]:
    """Return the result of `score` in a new process."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks.scaling", str(dataset), output]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(repeats: int) -> list[Row]:
    """Return one row for the rate and one for peak memory. The order of runs is fixed, whatever `repeats` is."""
    model_folder()
    found: dict[int, list[dict]] = {1: [], 10: [], 100: []}
    with tempfile.TemporaryDirectory() as folder:
        for times in found:
            store(times, Path(folder, str(times)))
        # The long run is between short ones: a machine that slows down slows all of them.
        for times in (1, 10, 1, 100, 10, 1):
            found[times].append(measure(Path(folder, str(times))))
            print(f"  {times}x: {found[times][-1]}", flush=True)
    mean = lambda times, key: sum(one[key] for one in found[times]) / len(found[times])  # noqa: E731
    rows = []
    for key, name, form, low, high in (
        ("rate", "tokens/s", "{:,.0f}", 0.9, None),
        ("mib", "peak MiB", "{:,.0f}", None, 1.1),
    ):
        ratio = mean(100, key) / mean(1, key)
        rows.append(
            Row(
                f"scoring and writing the table, {name}, 100x / 1x the data ({UNIT} texts; 10x: {mean(10, key):,.0f})",
                form.format(mean(100, key)),
                form.format(mean(1, key)),
                ratio,
                ">= 0.9" if low else "<= 1.1",
                ratio >= low if low else ratio <= high,
            )
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(score(*sys.argv[1:])))
