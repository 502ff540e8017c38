"""Reading, scoring and writing the table at 1x, 10x and 100x the data: rate and peak memory, each in its own process.

By the parts of the pipeline's own stage, from a stored dataset to a stored table. With the model's first two layers
only, so that reading and writing weigh as much as they can beside the forward pass.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from benchmarks.common import Row, gsm_examples, model_folder
from tokenuq_ml.tables.parquet import write_table

UNIT = 40
STAMP = {"spec_hash": "b", "code_version": "b"}

_CHILD = """
import json, sys, time
from itertools import islice
from benchmarks.common import model_folder
from benchmarks.scaling import STAMP, UNIT
from tokenuq_ml.data.batching import StoredExamples
from tokenuq_ml.stages.loss_tables import with_categories
from tokenuq_ml.stages.losses_and_states import stored_shards
from tokenuq_ml.stages.runner import peak_memory_mib
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.tables import TableWriter
from tokenuq_ml.scoring.token_losses import score_examples
dataset, written = sys.argv[1:]
model, numerics = load_model(model_folder())
model.model.layers = model.model.layers[:2]
tokenizer = load_tokenizer(model_folder())
score_examples(model, list(islice(StoredExamples(dataset), UNIT)), numerics)
started, tokens = time.perf_counter(), 0
with TableWriter("token_losses", written, **STAMP) as table:
    for shard in stored_shards(dataset, numerics):
        rows = score_examples(model, shard, numerics)
        rows = rows.with_columns(base_loss="loss", base_entropy="entropy")
        table.append(with_categories(rows, tokenizer))
        tokens += sum(len(e.input_ids) for e in shard)
print(json.dumps({"rate": tokens / (time.perf_counter() - started), "mib": peak_memory_mib()}))
"""


def store(times: int, folder: Path) -> None:
    """A `tokenized_dataset` of the same texts so many times."""
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
    """Tokens per second and the process's peak memory."""
    with tempfile.TemporaryDirectory() as written:
        command = [sys.executable, "-c", _CHILD, str(dataset), written]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(repeats: int) -> list[Row]:
    model_folder()
    found: dict[int, list[dict]] = {1: [], 10: [], 100: []}
    with tempfile.TemporaryDirectory() as folder:
        for times in found:
            store(times, Path(folder, str(times)))
        # The long run stands between short ones, so that a machine that slows down does so for all.
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
