"""A tiny model with two adapters, evaluated as a stage evaluates it."""

from pathlib import Path

import polars as pl

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.evaluate_model import evaluate_and_store
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES

SUMS = [f"How many are {number} and 2?" for number in range(7)]


def messages(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": SUMS[number]},
        {"role": "assistant", "content": f"They are {number}+2.\n#### {number + 2}"},
    ]


class Evaluator:
    """A tiny model with two adapters, a dataset, and requests to evaluate on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer = tiny_tokenizer(folder / "model")
        self.base = tiny_model(vocab=len(self.tokenizer))
        self.base.save_pretrained(folder / "model")
        self.adapters = {}
        for seed in (1, 2):
            model = tiny_peft(seed=seed, vocab=len(self.tokenizer)).eval()
            model.save_pretrained(folder / f"adapter{seed}")
            self.adapters[seed] = model
        rows = [
            {
                "example_id": f"sums/{number}",
                "split": "train" if number < 3 else "test",
                "messages": messages(number),
                "source": "{}",
            }
            for number in range(7)
        ]
        write_table(pl.DataFrame(rows), "examples", folder / "examples", spec_hash="s", code_version="1-s")
        self.examples = [
            TokenizedExample(
                row["example_id"], "sums", row["split"], *tokenize_example(self.tokenizer, row["messages"], 500)[:2]
            )
            for row in rows
        ]

    def evaluate(self, out: Path, evaluation: dict, adapter: int | None = 1, fields: dict | None = None, **inputs: str):
        tables = [name for name, table in TABLES.items() if "ablation" in table.partitions]
        self.asset = AssetRequest(
            fields={
                "precision": "float32",
                "evaluation": EvaluationSpec(**{"bootstrap": 50, **evaluation}).fields(),
                **(fields or {}),
            },
            code_version="1-c",
            outputs={name: str(out / name) for name in tables},
        )
        self.request = StageRequest(
            entrypoint="train_student",
            assets={"evaluation": self.asset},
            inputs={"model": str(self.folder / "model"), "examples/sums": str(self.folder / "examples"), **inputs},
            work_dir=str(self.folder / "work"),
        )
        candidate = Candidate(
            self.base if adapter is None else self.adapters[adapter],
            self.tokenizer,
            None if adapter is None else self.folder / f"adapter{adapter}",
            family="f",
            seed=0,
            name="toy",
        )
        self.reporter = RecordingReporter()
        context = StageContext("evaluation", self.request, self.reporter, FLOAT32)
        return evaluate_and_store(context, candidate, self.examples)


def metrics(out: Path) -> dict[str, dict]:
    """Return the rows of an evaluation by the name of their metric."""
    return {row["metric"]: row for row in read_table(out / "evaluations").iter_rows(named=True)}
