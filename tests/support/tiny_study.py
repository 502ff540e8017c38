"""A study of real stages on a tiny random Llama: its configuration and input files, and a launcher in this process."""

import importlib
import json
import time
from pathlib import Path

import dagster as dg
import yaml

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.stages.reporters import with_numerics, with_usage

STUDY = "tiny"
ABLATIONS = ("mle", "masked_mle_top25", "paper_top25")
CONFIG = {
    "models": {"tiny_llama": {"source": "path", "path": "llama"}},
    "datasets": {
        "sums": {"format": "messages", "path": "sums.jsonl", "sizes": {"train": 12, "validation": 4, "test": 4}},
        "chat": {"format": "messages", "path": "chat.jsonl", "sizes": {"ood": 4}},
        "checks": {"format": "ifeval", "path": "checks.jsonl", "sizes": {"ood": 2}},
    },
    "studies": {
        STUDY: {
            "model": "tiny_llama",
            "dataset": "sums",
            "ood": ["chat"],
            "max_length": 200,
            "precision": "float32",
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "warmup_ratio": 0.0,
                "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            },
            "uncertainty": {"samples": 3, "dropout": 0.2},
            "curriculum": {"examples": 2, "samples": 3},
            "evaluation": {
                "bootstrap": 200,
                "ifeval": {"dataset": "checks", "max_new_tokens": 8},
                "gsm8k": {"dataset": "sums", "num_fewshot": 1, "max_new_tokens": 8, "split": "test"},
                "alpaca_eval": {"dataset": "chat", "max_new_tokens": 8, "judge": {"local_model": "tiny_llama"}},
            },
            "ablations": list(ABLATIONS),
        }
    },
    "ablations": {
        "mle": {"select": "all", "selected": "mle"},
        "masked_mle_top25": {"select": {"by": "loss", "quantile": 0.25}, "rest": "none"},
        "paper_top25": {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {"teacher": "baseline"}}},
    },
}


def conversation(question: str, answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def write_inputs(folder: Path) -> None:
    """Write the model, the data files and the configuration into `folder`."""
    tokenizer = tiny_tokenizer(folder / "llama")
    model = tiny_model(vocab=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "llama")
    sums = [
        conversation(
            f"How many apples are {a} and {a + 3}?", f"The total is {a}+{a + 3}={2 * a + 3}.\n#### {2 * a + 3}"
        )
        for a in range(30)
    ]
    (folder / "sums.jsonl").write_text("\n".join(sums))
    (folder / "chat.jsonl").write_text(
        "\n".join(
            conversation(f"Say {word}.", f"She says {word} <b>now</b>.")
            for word in ("one", "two", "three", "four", "five")
        )
    )
    (folder / "checks.jsonl").write_text(
        "\n".join(
            json.dumps(row)
            for row in [
                {
                    "key": 1,
                    "prompt": "Write without commas.",
                    "instruction_id_list": ["punctuation:no_comma"],
                    "kwargs": [{}],
                },
                {
                    "key": 2,
                    "prompt": "Write in lower case.",
                    "instruction_id_list": ["change_case:english_lowercase"],
                    "kwargs": [{}],
                },
            ]
        )
    )
    for name, entries in CONFIG.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(entries))


class StagesInProcess(dg.ConfigurableResource):
    """A launcher that runs the stages in this process: a child process per stage would import torch each time."""

    def run(self, context, request, staging, lease):
        reporter, started = RecordingReporter(), time.monotonic()
        importlib.import_module(f"tokenuq_ml.stages.{request.entrypoint}").run(request, reporter)
        # A stage's process adds these to each result.
        yield from (with_usage(with_numerics(result), started) for result in reporter.results)
