"""The curriculum that selection makes: which token categories, and does uncertainty fall?

Reads tables and adapters that training left; trains nothing.
"""

from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml.config import CurriculumSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Reporter
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples


def selected_by_category(selections: pl.DataFrame, token_losses: pl.DataFrame) -> pl.DataFrame:
    """The `curriculum` table: tokens and selected tokens of each category at each step."""
    categories = token_losses.select("example_id", "position", pl.col("category").cast(pl.String))
    return (
        selections.join(categories, on=["example_id", "position"], how="inner", validate="m:1")
        .group_by("step", "epoch", "category")
        .agg(
            n_tokens=pl.len().cast(pl.Int32),
            n_selected=pl.col("selected").sum().cast(pl.Int32),
            mean_loss=pl.col("loss").mean(),
        )
        .sort("step", "category")
    )


def fixed_sample(examples: list[TokenizedExample], count: int) -> list[TokenizedExample]:
    """The same few validation examples for every ablation of a study: the first by id."""
    return sorted(examples, key=lambda example: example.example_id)[:count]


def uncertainty_at(
    model: PeftModel,
    sample: list[TokenizedExample],
    token_losses: pl.DataFrame,
    fraction: float,
    step: int,
    curriculum: CurriculumSpec,
    uncertainty: UncertaintySpec,
    numerics: Numerics,
) -> pl.DataFrame:
    """Rows of `curriculum_uncertainty` for the adapter as it stands: one a category, and one for `all`."""
    spec = uncertainty.model_copy(update={"samples": curriculum.samples})
    tokens = (
        score_examples(model, sample, numerics)
        .join(token_uncertainty(model, sample, spec, numerics), on=["example_id", "position"], validate="1:1")
        .join(
            token_losses.select("example_id", "position", pl.col("category").cast(pl.String)),
            on=["example_id", "position"],
            validate="1:1",
        )
    )
    figures = [
        pl.len().cast(pl.Int32).alias("n_tokens"),
        *(pl.col(name).mean() for name in ("loss", "predictive_entropy", "expected_entropy", "bald")),
    ]
    by_category = tokens.group_by("category").agg(figures)
    everything = tokens.select(figures).select(pl.lit("all").alias("category"), pl.all())
    return pl.concat([everything, by_category]).select(
        pl.lit(fraction, pl.Float32).alias("fraction"), pl.lit(step, pl.Int32).alias("step"), pl.all()
    )


def adapter_at(fraction: float, steps: int, adapter: Path, snapshots: Path) -> tuple[int, Path | None]:
    """`(step, folder)` of the adapter after a share of training; no folder for the fresh adapter at 0.

    Raises:
        FileNotFoundError: training kept no snapshot there.
    """
    step = round(fraction * steps)
    if step <= 0:
        return 0, None
    if step >= steps:
        return steps, adapter
    folder = snapshots / f"step-{step:06d}"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no snapshot of step {step}; materialise the student again")
    return step, folder


def uncertainty_over_training(
    model: PeftModel,
    load,
    points: list[tuple[float, int, Path | None]],
    sample: list[TokenizedExample],
    token_losses: pl.DataFrame,
    curriculum: CurriculumSpec,
    uncertainty: UncertaintySpec,
    numerics: Numerics,
    reporter: Reporter,
    name: str,
) -> pl.DataFrame:
    """The `curriculum_uncertainty` table; `load(folder)` puts a stored adapter (None: a fresh one) into `model`."""
    frames, seen = [], set()
    for fraction, step, folder in points:
        if step in seen:
            continue
        seen.add(step)
        load(folder)
        frame = uncertainty_at(model, sample, token_losses, fraction, step, curriculum, uncertainty, numerics)
        overall = frame.filter(pl.col("category") == "all").row(0, named=True)
        reporter.info(f"{name}: at {fraction:.0%} of training: loss {overall['loss']:.3f}, BALD {overall['bald']:.5f}")
        frames.append(frame)
    return pl.concat(frames)
