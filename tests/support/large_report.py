"""The report of a study of many families and seeds, built by the real stage from tables with the texts of real data.

`python -m tests.support.large_report FOLDER` builds it and prints how long that takes; `benchmarks/report_page.py`
measures how fast the page opens.
"""

import argparse
import re
import time
import zlib
from pathlib import Path

import numpy as np
import polars as pl

from tests.support import tiny_tables
from tests.support.paths import CONFIG
from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import AblationSpec, EvaluationSpec, StudySpec
from tokenuq_ml.config.load import load_ablations, load_config
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.token_categories import categorise
from tokenuq_ml.evaluation.held_out import held_out_examples
from tokenuq_ml.evaluation.metrics import example_rows, metric_rows
from tokenuq_ml.reports.family_table import families_of
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.stages import report
from tokenuq_ml.stages.correlate import joined_tokens
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.schemas import TOKEN_KEY

FAMILIES, SEEDS = 40, 10
SIZES = {"train": 160, "validation": 40, "test": 80}
OOD, OOD_SIZE, PROMPTS = "alpaca_eval_gpt4", 40, 120
BATCH, EPOCHS, FRACTIONS = 16, 4, (0.0, 0.25, 0.5, 0.75, 1.0)
EVALUATION = EvaluationSpec(bootstrap=1000)
_PIECES = re.compile(r" ?[A-Za-z]{1,6}| ?\d|\s|[^\w\s]|\w")
"""Pieces of about the size of a vocabulary's tokens."""
_CATEGORIES = ("word", "number", "punctuation", "subword", "whitespace")


def ablations(families: int = FAMILIES, seeds: int = SEEDS) -> dict[str, AblationSpec]:
    """Return the first shipped families, each with that many seeds."""
    shipped = load_ablations(CONFIG)
    firsts = {family: shipped[names[0]] for family, names in list(families_of(shipped).items())[:families]}
    named = {
        f"{family}_s{seed}" if seed else family: (seed, first)
        for family, first in firsts.items()
        for seed in range(seeds)
    }
    return {name: first.model_copy(update={"name": name, "seed": seed}) for name, (seed, first) in named.items()}


def write_tables(folder: Path, families: int = FAMILIES, seeds: int = SEEDS) -> StageRequest:
    """Write the tables below a new folder; return the request to the stage that makes the report of them."""
    compared, store = ablations(families, seeds), folder / "store"
    shared = _shared_tables()
    losses = shared["token_losses"]
    inputs = tiny_tables.publish(store, shared | {"training_log/teacher": _training_log(_draw("teacher"), losses)})
    models = {"base": (None, 0.5), "teacher": (0, 0.0)}
    order = {family: number for number, family in enumerate(families_of(compared))}
    models |= {name: (one.seed, 0.004 * (order[one.family] % 13 - 6)) for name, one in compared.items()}
    # Written one by one: all of them do not fit in memory.
    for name, (seed, shift) in models.items():
        inputs |= tiny_tables.publish(store, _evaluated(name, seed, shift, losses))
    for name, ablation in compared.items():
        inputs |= tiny_tables.publish(store, _trained(name, ablation, losses))
    inputs |= tiny_tables.publish_costs(folder / "costs", compared)
    out = folder / "report"
    out.mkdir(parents=True)
    study = StudySpec(
        name="large",
        model="smollm2_135m",
        dataset="gsm_symbolic",
        ood=(OOD,),
        ablations=tuple(compared),
        evaluation=EVALUATION,
    )
    fields = {"study": study.fields(), "ablations": {name: one.fields() for name, one in compared.items()}}
    return StageRequest(
        entrypoint="report",
        study=study.name,
        assets={"ablation_report": AssetRequest(fields=fields, code_version="1-x", outputs={"report": str(out)})},
        inputs=inputs,
        work_dir=str(folder / "work"),
    )


def _draw(name: str) -> np.random.Generator:
    """Return the random numbers of what has this name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def _shared_tables() -> dict[str, pl.DataFrame]:
    shipped = {name: _dataset(name) for name in ("gsm_symbolic", OOD)}
    losses = pl.concat(_token_rows(example, name) for name, examples in shipped.items() for example in examples)
    draw = np.random.default_rng(1)
    bald = draw.lognormal(-6, 1, len(losses))
    entropy = 40 * bald * draw.lognormal(0, 0.5, len(losses))
    losses = losses.with_columns(
        loss=pl.Series(entropy * draw.exponential(1, len(losses))),
        entropy=pl.Series(entropy),
        rank=pl.Series(draw.geometric(0.6, len(losses)) - 1),
    ).with_columns(base_loss=pl.col("loss") * 1.3, base_entropy=pl.col("entropy") * 1.2)
    uncertainty = losses.select(
        *TOKEN_KEY,
        predictive_entropy=pl.Series(entropy + bald),
        expected_entropy=pl.Series(entropy),
        bald=pl.Series(bald),
        bald_std_error=pl.Series(bald / 4),
        mc_loss="loss",
        n_samples=pl.lit(5),
    )
    return {
        "token_losses": losses,
        "token_uncertainty": uncertainty,
        "bald_reference": tiny_tables.bald_reference(uncertainty),
        "uncertainty_analysis": correlation_table(joined_tokens(losses, uncertainty), EvaluationSpec(bootstrap=50)),
        "token_alternatives": _alternatives(losses),
        **{f"examples/{name}": _example_table(examples) for name, examples in shipped.items()},
    }


def _dataset(name: str) -> list[Example]:
    spec = load_config(CONFIG).datasets[name]
    return load_examples(spec.model_copy(update={"sizes": SIZES if name != OOD else {"ood": OOD_SIZE}})).examples


def _token_rows(example: Example, dataset: str) -> pl.DataFrame:
    pieces = _PIECES.findall(example.messages[-1]["content"])
    count = len(pieces)
    return pl.DataFrame(
        {
            "example_id": [example.id] * count,
            "dataset": [dataset] * count,
            "split": [example.split] * count,
            "position": range(60, 60 + count),
            "token_id": [zlib.crc32(piece.encode()) % 49_152 for piece in pieces],
            "token": pieces,
            "category": categorise(pieces, [False] * count),
        }
    )


def _alternatives(losses: pl.DataFrame) -> pl.DataFrame:
    keys = losses.filter(pl.col("split") != "train").select(*TOKEN_KEY, "token_id", "token")
    return pl.concat(
        keys.with_columns(
            choice=pl.lit(choice, pl.Int8),
            probability=pl.lit(0.5 / 2**choice, pl.Float32),
            token=pl.col("token").shift(choice).fill_null("the"),
        )
        for choice in range(5)
    )


def _example_table(examples: list[Example]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [example.id for example in examples],
            "split": [example.split for example in examples],
            "messages": [example.messages for example in examples],
            "source": [f'{{"template": {number % 40}}}' for number in range(len(examples))],
        }
    )


def _evaluated(name: str, seed: int | None, shift: float, losses: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return what the evaluation of a model whose losses are higher by `shift` leaves."""
    draw, held_out = _draw(name), losses.filter(pl.col("split").is_in(["test", "ood"]))
    noise = pl.Series(draw.normal(shift + draw.normal(0, 0.004), 0.05, len(held_out)))
    tokens = held_out.select(
        *TOKEN_KEY,
        "dataset",
        "split",
        "rank",
        "entropy",
        loss=(pl.col("loss") + noise).clip(0.0),
        confidence=pl.lit(0.7),
    )
    examples = held_out_examples(tokens, 10, losses.select(*TOKEN_KEY, "loss", "entropy"))
    ids = pl.Series([f"ifeval/{number:06d}" for number in range(PROMPTS)])
    followed = {
        f"{level}_{mode}_acc": example_rows(
            "ifeval", "ood", f"{level}_{mode}_acc", ids, draw.binomial(1, 0.25 - shift / 4, PROMPTS), [1] * PROMPTS
        )
        for level in ("prompt_level", "inst_level")
        for mode in ("strict", "loose")
    }
    examples = pl.concat([examples, *followed.values()])
    family = name.removesuffix(f"_s{seed}")
    rows = metric_rows(examples, EvaluationSpec(bootstrap=100))
    return {
        f"evaluations/{name}": rows.select(
            pl.lit(family).alias("family"), pl.lit(seed, pl.Int32).alias("seed"), pl.all()
        ),
        f"evaluation_examples/{name}": examples,
        f"evaluation_tokens/{name}": tokens.select(*TOKEN_KEY, "loss", "entropy"),
    }


def _steps(draw: np.random.Generator, losses: pl.DataFrame) -> list[tuple[int, float, list[str]]]:
    """Return `(step, epoch, examples)` of a training over `EPOCHS` epochs."""
    ids, steps = losses.filter(split="train")["example_id"].unique(maintain_order=True).to_list(), []
    for epoch in range(EPOCHS):
        order = draw.permutation(ids).tolist()
        for start in range(0, len(order), BATCH):
            done = epoch + min(1.0, (start + BATCH) / len(order))
            steps.append((len(steps) + 1, done, order[start : start + BATCH]))
    return steps


def _training_log(draw: np.random.Generator, losses: pl.DataFrame) -> pl.DataFrame:
    steps = _steps(draw, losses)
    curve = np.exp(-np.arange(len(steps)) / 12) + draw.normal(0.3, 0.03, len(steps))
    return pl.DataFrame(
        {
            "step": [step for step, _, _ in steps],
            "epoch": [epoch for _, epoch, _ in steps],
            "loss": curve,
            "mle_loss": 1.4 * curve,
            "distill_loss": 0.4 * curve,
            "selected_share": [0.25] * len(steps),
            "learning_rate": [1e-4] * len(steps),
            "grad_norm": draw.lognormal(0, 0.3, len(steps)),
            "tokens": [1200] * len(steps),
            "lora_rank": [32] * len(steps),
        }
    )


def _trained(name: str, ablation: AblationSpec, losses: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the tables of a student's training, which selects a quarter of the tokens."""
    # As in a real study, a seed decides the batches of all its families.
    steps = _steps(np.random.default_rng(ablation.seed), losses)
    draw = _draw(name)
    batches = pl.DataFrame(
        [(step, epoch, example) for step, epoch, examples in steps for example in examples],
        schema={"step": pl.Int32, "epoch": pl.Float32, "example_id": pl.String},
        orient="row",
    )
    train = losses.filter(split="train").select(*TOKEN_KEY, "category", "loss")
    rows = batches.join(train, on="example_id").sort("step", *TOKEN_KEY)
    rows = rows.with_columns(
        loss=pl.col("loss") * pl.Series(draw.lognormal(0, 0.2, len(rows))), objective=pl.lit("mle")
    )
    rows = rows.with_columns(selected=pl.col("loss") >= pl.col("loss").quantile(0.75).over("step"))
    curriculum = rows.group_by("step", "epoch", "category").agg(
        n_tokens=pl.len(), n_selected=pl.col("selected").sum(), mean_loss=pl.col("loss").mean()
    )
    uncertainty = pl.DataFrame(
        [
            {
                "fraction": fraction,
                "step": round(len(steps) * fraction),
                "category": category,
                "n_tokens": 300,
                "loss": 1.2 - 0.4 * fraction,
                "predictive_entropy": 1.0,
                "expected_entropy": 1.0 - 1e-3 * fraction,
                "bald": 1e-3 * fraction * draw.lognormal(0, 0.1),
            }
            for fraction in FRACTIONS
            for category in ("all", *_CATEGORIES)
        ]
    )
    return {
        f"training_log/{name}": _training_log(draw, losses),
        f"selections/{name}": rows.drop("category"),
        f"curriculum/{name}": curriculum.sort("step", "category"),
        f"curriculum_uncertainty/{name}": uncertainty.sort("step", "category"),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--families", type=int, default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    request = write_tables(arguments.folder, arguments.families, arguments.seeds)
    started = time.perf_counter()
    report.run(request, RecordingReporter())
    page = arguments.folder / "report" / report.PAGE
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, made in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
