"""How much of loss, entropy and BALD is rounding, sampling noise and signal.

`python -m benchmarks.precision_study STORE --output FOLDER` scores held-out response tokens with the teacher of a study
in a store, in several precisions, and writes Parquet files and figures.json. `precision_tables.py` prints the tables of
docs/results/precision.md from them. Takes about half an hour for SmolLM2-135M on two cores.

Masks are keyed by the number of the sample. The first K of 40 samples are therefore the samples of a run with K, and
disjoint groups of K samples are independent repeats: sampling noise needs no further passes.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import collate, length_batches
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_scores
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout, sample_hidden_states
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float32_passes import ieee_float32_products
from tokenuq_ml.models.float64_passes import float64_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring import bald_reference
from tokenuq_ml.scoring.bald_reference import float64_uncertainty, reference_sample
from tokenuq_ml.scoring.batch_threads import batch_tokens, map_batches, num_workers
from tokenuq_ml.scoring.mc_dropout import uncertainty_rows
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.schemas import TOKEN_KEY

SAMPLES, COUNTS = 40, (5, 10, 20, 40)
MASKS, DROPOUTS = ("sequence", "position"), (0.05, 0.1, 0.2)
PRECISIONS = ("float32", "bfloat16")
OFF = 0.0005
"""A dropout rate at which BALD is far below bfloat16's rounding, although each pass drops some features."""
FLOAT64_SAMPLES = 10


def held_out(folder: Path, tokens: int) -> list:
    """Return held-out examples of all splits, with about `tokens` tokens in total."""
    bald_reference.SAMPLE_TOKENS = tokens
    return reference_sample(StoredExamples(folder, ["validation", "test", "ood"]))


def groups_of_samples(model, examples, spec: UncertaintySpec, numerics) -> dict[str, pl.DataFrame]:
    """Return the rows of `token_uncertainty` for each disjoint group of K samples, named `K/number`."""
    head = head_of(model)
    rows: dict[str, list[pl.DataFrame]] = {}
    with ieee_float32_products(), fast_inference(causal_lm(model)), monte_carlo_dropout(model, spec) as start_pass:

        def scored(batch):
            hidden_KND = sample_hidden_states(model, batch, start_pass, spec.samples, numerics)
            return batch, {
                f"{count}/{start // count}": monte_carlo_scores(
                    hidden_KND[start : start + count].contiguous(), head, batch.label_N
                )
                for count in COUNTS
                if count <= spec.samples
                for start in range(0, spec.samples, count)
            }

        batches = length_batches(examples, batch_tokens(numerics), num_workers(model, numerics))
        for batch, groups in map_batches(scored, batches, model, numerics):
            for name, scores in groups.items():
                rows.setdefault(name, []).append(uncertainty_rows(batch, scores, spec))
    return {name: pl.concat(parts).sort(TOKEN_KEY) for name, parts in rows.items()}


@torch.no_grad()
def float64_losses(model, examples) -> pl.DataFrame:
    """Return loss, entropy and rank in float64."""
    head = head_of(model)
    head, rows = replace(head, weight_VD=head.weight_VD.double()), []
    with float64_passes(causal_lm(model)):
        for example in examples:
            batch = collate([example])
            hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs))
            scores = token_scores(hidden_ND, head, batch.label_N)
            keys = pl.DataFrame(batch.keys, schema=TOKEN_KEY, orient="row")
            rows.append(
                keys.with_columns(
                    loss=scores.loss_N.numpy(), entropy=scores.entropy_N.numpy(), rank=scores.rank_N.numpy()
                )
            )
    return pl.concat(rows).sort(TOKEN_KEY)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument("--study", default="quickstart", help="study whose teacher is used (default %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="the study's model (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=2000, help="sample size, prompts included (default %(default)s)")
    parser.add_argument(
        "--float64-tokens", type=int, default=1000, help="size of the sample in float64 (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for Parquet files and figures.json")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    data = options.store / f"tokenized_dataset/study={options.study}"
    examples, few = held_out(data, options.tokens), held_out(data, options.float64_tokens)
    seconds: dict[str, float] = {}

    def keep(name: str, frame: pl.DataFrame, started: float) -> None:
        seconds[name] = time.perf_counter() - started
        frame.write_parquet(options.output / f"{name}.parquet")
        print(f"{name}: {seconds[name]:.1f} s", flush=True)

    for precision in PRECISIONS:
        base, numerics = load_model(options.store / "models" / options.model, precision)
        adapter = options.store / f"baseline_teacher/study={options.study}/adapter"
        model = attach_adapter(base, adapter, "teacher")
        started = time.perf_counter()
        losses = score_examples(model, examples, numerics).select(*TOKEN_KEY, "loss", "entropy", "rank").sort(TOKEN_KEY)
        keep(f"losses-{precision}", losses, started)
        if precision == "float32":
            started = time.perf_counter()
            keep("losses-float64", float64_losses(model, examples), started)
            for mask in MASKS:
                started, spec = time.perf_counter(), UncertaintySpec(samples=FLOAT64_SAMPLES, dropout=0.1, mask=mask)
                keep(f"bald-float64-{mask}-0.1-10-0", float64_uncertainty(model, few, spec).sort(TOKEN_KEY), started)
        runs = [(mask, dropout, SAMPLES) for mask in MASKS for dropout in DROPOUTS]
        runs += [(mask, OFF, 10) for mask in MASKS]
        for mask, dropout, samples in runs:
            started, spec = time.perf_counter(), UncertaintySpec(samples=samples, dropout=dropout, mask=mask)
            groups = groups_of_samples(model, examples, spec, numerics)
            for name, frame in groups.items():
                keep(f"bald-{precision}-{mask}-{dropout}-{name.replace('/', '-')}", frame, started)
    about = {
        "study": options.study,
        "examples": len(examples),
        "tokens": sum(len(example.input_ids) for example in examples),
        "response_tokens": sum(len(example.positions) for example in examples),
        "float64_response_tokens": sum(len(example.positions) for example in few),
        "seconds": seconds,
    }
    (options.output / "figures.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
