"""How well `tokenuq curate` finds wrong answers: label noise is planted in GSM8K, and scores are compared with it.

`python -m benchmarks.planted_noise FOLDER --seed 0` plants errors in rows of GSM8K, fine-tunes SmolLM2-135M on them,
scores every response token, and writes the tables to FOLDER. `planted_noise_tables.py` prints the tables of
docs/results/planted_noise.md from them. `$TOKENUQ_BENCH_GSM8K` names GSM8K's train file.

Two kinds of error, each in 5% of the rows: `final` replaces the number after `####` only. `worked` replaces the result
of one step and recomputes the steps after it, so that the worked answer agrees with its wrong final number. Both are in
one training set, to halve the time; each kind is compared with the correct rows alone.
"""

import argparse
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
from peft import PeftModel

from benchmarks.common import LORA, model_folder
from tokenuq_ml.config import AblationSpec, SelectSpec, TrainSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.models.adapters import add_adapter, use_adapter
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.trainer import train

GSM8K = "TOKENUQ_BENCH_GSM8K"
ROWS, SHARE, SAMPLES, MAX_LENGTH = 240, 0.05, 3, 160
"""Rows of at most MAX_LENGTH tokens, the share of them that gets an error of each kind, and K of BALD."""
TRAINING = TrainSpec(epochs=1, batch_size=4, learning_rate=5e-4, warmup_ratio=0.1, lora=LORA)
CLEANLAB_ROWS = 80
"""Rows of the subset that cleanlab scores: all planted ones, and others. It needs tokens x V probabilities."""
CLEANLAB_METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

_MARK = re.compile(r"<<([^<>=]+)=([^<>]+)>>")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PLAIN = re.compile(r"[\d\s.+\-*/()]+")


def plant(rows: list[dict], seed: int) -> tuple[list[dict], dict[int, str]]:
    """Return the rows with errors of each kind in a share `SHARE` of them, and row number -> kind of its error."""
    draw = random.Random(f"errors/{seed}")
    planted, kinds = list(rows), {}
    for kind, change in {"worked": wrong_worked_answer, "final": wrong_final_number}.items():
        for number in draw.sample(range(len(rows)), len(rows)):
            if number in kinds or (answer := change(rows[number]["answer"], draw)) is None:
                continue
            planted[number], kinds[number] = {**rows[number], "answer": answer}, kind
            if list(kinds.values()).count(kind) == round(SHARE * len(rows)):
                break
    return planted, kinds


def wrong_final_number(answer: str, draw: random.Random) -> str | None:
    """Return the answer with another number after `####`; None if there is no plain one."""
    work, _, final = answer.rpartition("#### ")
    return f"{work}#### {_other(final, draw)}" if final.strip().isdigit() else None


def wrong_worked_answer(answer: str, draw: random.Random) -> str | None:
    """Return the answer with a wrong result of one step, and all later numbers recomputed from it.

    None if the steps are not plain arithmetic, or the final number does not follow from the step.
    """
    work, _, final = answer.rpartition("#### ")
    marks = list(_MARK.finditer(work))
    for start in draw.sample(marks, len(marks)):
        right = start[2].strip()
        if not right.isdigit() or _value(start[1]) != float(right):
            continue
        wrong = _other(right, draw)
        head = work[: start.start()] + f"<<{start[1]}={wrong}>>"
        rest, changed = _recomputed(work[start.end() :], {right: wrong})
        now = changed.get(final.strip())
        if rest is not None and now is not None and now.isdigit():
            return f"{head}{rest}#### {now}"
    return None


def _recomputed(text: str, changed: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """Return `text` with changed numbers replaced and its steps recomputed, and all changed numbers."""
    parts, end = [], 0
    for mark in _MARK.finditer(text):
        parts.append(_replaced(text[end : mark.start()], changed))
        expression, before = _replaced(mark[1], changed), mark[2].strip()
        value = _value(expression) if expression != mark[1] else None
        result = before
        if value is not None:
            if value < 0 or value != int(value):
                return None, {}
            result = str(int(value))
            changed = {**changed, before: result} if result != before else changed
        elif expression != mark[1]:
            return None, {}
        parts.append(f"<<{expression}={result}>>")
        end = mark.end()
    return "".join([*parts, _replaced(text[end:], changed)]), changed


def _replaced(text: str, changed: Mapping[str, str]) -> str:
    return _NUMBER.sub(lambda found: changed.get(found[0], found[0]), text)


def _value(expression: str) -> float | None:
    """Return the value of plain arithmetic; None for anything else."""
    if not _PLAIN.fullmatch(expression):
        return None
    try:
        return float(eval(expression, {"__builtins__": {}}))
    except (SyntaxError, ZeroDivisionError, TypeError, OverflowError):
        return None


def _other(number: str, draw: random.Random) -> str:
    """Return another number with as many digits."""
    digits = len(number.strip())
    low = 10 ** (digits - 1) if digits > 1 else 1
    while (other := str(draw.randint(low, 10**digits - 1))) == number.strip():
        pass
    return other


def gsm8k_rows(count: int, seed: int) -> list[dict]:
    """Return rows of the file that `$TOKENUQ_BENCH_GSM8K` names, of at most MAX_LENGTH tokens, drawn with the seed."""
    rows = [json.loads(line) for line in Path(os.environ[GSM8K]).read_text().splitlines()]
    random.Random(f"rows/{seed}").shuffle(rows)
    tokenizer, found = load_tokenizer(model_folder()), []
    for row in rows:
        if len(found) < count and len(tokenizer(row["question"] + row["answer"])["input_ids"]) <= MAX_LENGTH:
            found.append(row)
    return found


def tokenized(rows: list[dict]) -> list[TokenizedExample]:
    """Return the rows as tokens."""
    tokenizer, found = load_tokenizer(model_folder()), []
    for number, row in enumerate(rows):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        tokens = tokenize_example(tokenizer, turns, 2 * MAX_LENGTH)
        found.append(TokenizedExample(f"gsm8k/{number:06d}", "gsm8k", "train", tokens.input_ids, tokens.response_mask))
    return found


class _Log:
    """A reporter that prints."""

    def __init__(self):
        self._started = time.perf_counter()

    def info(self, message: str) -> None:
        print(f"{time.perf_counter() - self._started:7.1f} s  {message}", flush=True)

    warning = info

    def count_tokens(self, tokens: int) -> None:
        pass


def measure(examples: list[TokenizedExample], seed: int, path: Path, log: _Log) -> PeftModel:
    """Fine-tune a teacher on the examples, write both token tables, joined, to `path`, and return the teacher.

    The file appears without BALD first, whose passes take longest.
    """
    base, numerics = load_model(model_folder())
    model = add_adapter(base, LORA, seed)
    setup = TrainingSetup(examples, TRAINING, AblationSpec(name="vanilla", select=SelectSpec(by="all")), seed, numerics)
    with tempfile.TemporaryDirectory() as folder:
        recorder = train(model, setup, folder, log, "teacher")
    log.info(f"trained, final loss {recorder.training_log()['loss'][-10:].mean():.3f}")
    teacher = score_examples(model, examples, numerics).sort(TOKEN_KEY)
    log.info("teacher's losses")
    with use_adapter(model, None):
        before = score_examples(model, examples, numerics).sort(TOKEN_KEY)
    log.info("base model's losses")
    losses = teacher.with_columns(base_loss=before["loss"], base_entropy=before["entropy"])
    losses.write_parquet(path)
    spec = UncertaintySpec(samples=SAMPLES)
    bald = token_uncertainty(model, examples, spec, resolve_numerics("float32"))
    losses.join(bald, on=TOKEN_KEY, how="inner", validate="1:1").write_parquet(path)
    log.info("BALD")
    return model


@torch.no_grad()
def cleanlab_qualities(model: PeftModel, examples: list[TokenizedExample]) -> pl.DataFrame:
    """Return cleanlab's label quality of each response token by each of its methods, from complete distributions."""
    from cleanlab.rank import get_label_quality_scores

    rows = []
    for example in examples:
        batch = collate([example])
        logits_TV = model(**batch.model_inputs).logits[0].float()
        positions = example.positions
        probabilities = logits_TV[[position - 1 for position in positions]].softmax(-1).numpy()
        labels = np.asarray(example.input_ids)[positions]
        scores = {
            method: get_label_quality_scores(labels, probabilities, method=method, adjust_pred_probs=False)
            for method in CLEANLAB_METHODS
        }
        rows.append(
            pl.DataFrame({"example_id": [example.example_id] * len(positions), "position": positions, **scores})
        )
    return pl.concat(rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the tables are written")
    parser.add_argument("--seed", type=int, default=0, help="of rows, errors and training (default %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="training examples (default %(default)s)")
    parser.add_argument("--no-cleanlab", action="store_true", help="do not score a subset with cleanlab")
    options = parser.parse_args()
    if GSM8K not in os.environ:
        parser.error(f"set {GSM8K} to GSM8K's train file (JSON lines with question and answer)")
    log, folder = _Log(), options.folder / f"seed-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rows, kinds = plant(gsm8k_rows(options.rows, options.seed), options.seed)
    examples = tokenized(rows)
    planted = {examples[number].example_id: kind for number, kind in sorted(kinds.items())}
    (folder / "planted.json").write_text(json.dumps({"planted": planted, "rows": rows}, indent=1))
    log.info(f"{len(rows)} rows, {sum(len(example.input_ids) for example in examples):,} tokens, {len(planted)} errors")
    model = measure(examples, options.seed, folder / "tokens.parquet", log)
    if not options.no_cleanlab:
        others = [example.example_id for example in examples if example.example_id not in planted]
        chosen = {*planted, *others[: CLEANLAB_ROWS - len(planted)]}
        subset = [example for example in examples if example.example_id in chosen]
        cleanlab_qualities(model, subset).write_parquet(folder / "cleanlab.parquet")
        log.info(f"cleanlab's scores of {len(subset)} rows")


if __name__ == "__main__":
    main()
