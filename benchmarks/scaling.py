"""Scoring and writing the table at 1x, 10x and 100x the data: rate and peak memory, each in a process of its own.

With the model's first two layers only, so that writing weighs as much as it can beside the forward pass.
"""

import json
import subprocess
import sys

from benchmarks.common import Row, model_folder

UNIT = 40

_CHILD = """
import json, sys, tempfile, time
from dataclasses import replace
import torch
from benchmarks.common import gsm_examples, model_folder
from tokenuq_ml.batching import shards
from tokenuq_ml.entrypoints.measure import with_categories
from tokenuq_ml.entrypoints.runner import peak_memory_mib
from tokenuq_ml.models import load_model, load_tokenizer
from tokenuq_ml.tables import TableWriter
from tokenuq_ml.token_losses import score_examples
import polars as pl
times, unit = int(sys.argv[1]), int(sys.argv[2])
model, numerics = load_model(model_folder())
model.model.layers = model.model.layers[:2]
tokenizer, seeds = load_tokenizer(model_folder()), gsm_examples(unit)
score_examples(model, seeds, numerics)
examples = [replace(e, example_id=f"{n:04d}/{e.example_id}") for n in range(times) for e in seeds]
started = time.perf_counter()
stamp = {"spec_hash": "b", "code_version": "b"}
with tempfile.TemporaryDirectory() as folder, TableWriter("token_losses", folder, **stamp) as table:
    for shard in shards(examples):
        rows = score_examples(model, shard, numerics)
        rows = rows.with_columns(base_loss="loss", base_entropy="entropy")
        table.append(with_categories(rows, tokenizer))
seconds = time.perf_counter() - started
tokens = sum(len(e.input_ids) for e in examples)
print(json.dumps({"rate": tokens / seconds, "mib": peak_memory_mib()}))
"""


def measure(times: int) -> dict[str, float]:
    """Tokens per second and the process's peak memory."""
    command = [sys.executable, "-c", _CHILD, str(times), str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(repeats: int) -> list[Row]:
    model_folder()
    found: dict[int, list[dict]] = {1: [], 10: [], 100: []}
    # The long run stands between short ones, so that a machine that slows down does so for all.
    for times in (1, 10, 1, 100, 10, 1):
        found[times].append(measure(times))
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
