"""A toy study's published tables, written by the real writer: what the analysis and the report read."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.costs.record import CostRecord, Seconds
from tokenuq_ml.tables.parquet import write_table

SPLITS = ("train", "validation", "test", "ood")
CATEGORIES = ("special", "whitespace", "punctuation", "number", "word", "subword", "code")
LENGTH = 28


def losses_and_uncertainty(examples: int = 16, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`token_losses` and `token_uncertainty`; the loss follows BALD, beside noise."""
    draw = np.random.default_rng(seed)
    count = examples * LENGTH
    bald = draw.lognormal(-6, 1, count)
    entropy = 40 * bald * draw.lognormal(0, 0.5, count)
    keys = {
        "example_id": [f"toy/{row // LENGTH:03d}" for row in range(count)],
        "position": [row % LENGTH for row in range(count)],
    }
    losses = pl.DataFrame(
        {
            **keys,
            "dataset": ["toy"] * count,
            "split": [SPLITS[row // LENGTH % 4] for row in range(count)],
            "token_id": [row % 97 for row in range(count)],
            "token": ["<i>&amp;", " x", "\n", "7"] * (count // 4),
            "category": [CATEGORIES[row % 7] for row in range(count)],
            "loss": entropy + draw.exponential(0.1, count),
            "entropy": entropy,
            "rank": [0] * count,
            "base_loss": entropy,
            "base_entropy": entropy,
        }
    )
    uncertainty = pl.DataFrame(
        {
            **keys,
            "predictive_entropy": entropy + bald,
            "expected_entropy": entropy,
            "bald": bald,
            "bald_std_error": bald / 4,
            "mc_loss": entropy,
            "n_samples": [5] * count,
        }
    )
    return losses, uncertainty


def bald_reference(uncertainty: pl.DataFrame, share: float = 0.001) -> pl.DataFrame:
    """`bald_reference` of the first rows, whose noise is that share of each token's BALD."""
    first = uncertainty.head(50).select("example_id", "position", "bald")
    return first.with_columns(bald_float64=pl.col("bald").cast(pl.Float64) * (1 - share))


def alternatives(tokens: pl.DataFrame) -> pl.DataFrame:
    """`token_alternatives` of held-out tokens: the token itself at 0.5, and one other."""
    keys = tokens.filter(pl.col("split") != "train").select("example_id", "position", "token_id", "token")
    first = keys.with_columns(choice=pl.lit(0, pl.Int8), probability=pl.lit(0.5, pl.Float32))
    second = keys.with_columns(
        choice=pl.lit(1, pl.Int8), token=pl.lit("other"), token_id=pl.lit(7), probability=pl.lit(0.25, pl.Float32)
    )
    return pl.concat([first, second.cast(first.schema)])


def evaluation_tokens(tokens: pl.DataFrame, loss: float) -> pl.DataFrame:
    """A model's losses of the tokens of test and ood: the teacher's, and `loss` more."""
    held_out = tokens.filter(pl.col("split").is_in(["test", "ood"]))
    return held_out.select("example_id", "position", pl.col("loss") + loss, "entropy")


def examples_table() -> pl.DataFrame:
    """Two training and two test examples: one template of two is shared, one question is repeated."""
    rows = [("train", "q1", 1), ("train", "q2", 2), ("test", "q2", 2), ("test", "q3", 3)]
    return pl.DataFrame(
        {
            "example_id": [f"toy/{number:03d}" for number in range(len(rows))],
            "split": [split for split, _, _ in rows],
            "messages": [
                [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]
                for _, question, _ in rows
            ],
            "source": [json.dumps({"template": template}) for _, _, template in rows],
        }
    )


def evaluations(loss: float, half_width: float, seed: int | None = 0, ood: tuple[str, ...] = ("far",)) -> pl.DataFrame:
    """One model's losses, in distribution and on each OOD dataset."""
    return pl.DataFrame(
        [
            {
                "family": "f",
                "seed": seed,
                "dataset": dataset,
                "split": split,
                "metric": "loss",
                "value": loss,
                "ci_low": loss - half_width,
                "ci_high": loss + half_width,
                "n": 9,
                "higher_is_better": False,
            }
            for dataset, split in (("toy", "test"), *((name, "ood") for name in ood))
        ],
        schema_overrides={"seed": pl.Int32},
    )


def evaluation_examples(
    loss: float, examples: int = 9, ood: tuple[str, ...] = ("far",), noise: float = 0.0, draw: int = 0
) -> pl.DataFrame:
    """What each example adds to the same losses: `loss` a token beside the example's own part, and `noise`."""
    own, other = np.random.default_rng(7), np.random.default_rng(draw)
    frames = []
    for dataset, split in (("toy", "test"), *((name, "ood") for name in ood)):
        tokens = own.integers(5, 40, examples)
        a_token = loss + own.normal(0, 0.3, examples) + noise * other.normal(size=examples)
        frames.append(
            pl.DataFrame(
                {
                    "example_id": [f"{dataset}/{number:03d}" for number in range(examples)],
                    "dataset": dataset,
                    "split": split,
                    "metric": "loss",
                    "numerator": a_token * tokens,
                    "denominator": tokens.astype(float),
                }
            )
        )
    return pl.concat(frames)


def selections(share: float, steps: int = 6, tokens: int = 40, draw: int = 0) -> pl.DataFrame:
    """Of the same batches, `share` of the tokens selected: half of them always, half by chance."""
    chance = np.random.default_rng(draw)
    return pl.DataFrame(
        [
            {
                "step": step,
                "epoch": step / steps,
                "example_id": f"toy/{step:03d}",
                "position": position,
                "loss": 1.0,
                "selected": bool(position < share / 2 * tokens or chance.random() < share / 2),
                "objective": "mle",
            }
            for step in range(1, steps + 1)
            for position in range(tokens)
        ]
    )


def training_log(steps: int = 6) -> pl.DataFrame:
    """A falling loss; nothing is distilled."""
    return pl.DataFrame(
        {
            "step": range(1, steps + 1),
            "epoch": [step / steps for step in range(1, steps + 1)],
            "loss": [2.0 / step for step in range(1, steps + 1)],
            "mle_loss": [3.0 / step for step in range(1, steps + 1)],
            "distill_loss": [None] * steps,
            "selected_share": [0.25] * steps,
            "learning_rate": [1e-4] * steps,
            "grad_norm": [1.0] * steps,
            "tokens": [40] * steps,
            "lora_rank": [8] * steps,
        },
        schema_overrides={"distill_loss": pl.Float32},
    )


def curriculum(steps: int = 6, selected: int = 3) -> pl.DataFrame:
    """Every category at every step, each selected equally often."""
    return pl.DataFrame(
        [
            {"step": s, "epoch": s / steps, "category": c, "n_tokens": 9, "n_selected": selected, "mean_loss": 1.0}
            for s in range(1, steps + 1)
            for c in CATEGORIES
        ]
    )


def curriculum_uncertainty(fractions: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pl.DataFrame:
    """BALD is 0 at the start."""
    return pl.DataFrame(
        [
            {
                "fraction": fraction,
                "step": round(6 * fraction),
                "category": category,
                "n_tokens": 9,
                "loss": 2 - fraction,
                "predictive_entropy": 1.0,
                "expected_entropy": 1.0 - 1e-3 * fraction,
                "bald": 1e-3 * fraction,
            }
            for fraction in fractions
            for category in ("all", "word")
        ]
    )


def publish(folder: Path, frames: dict[str, pl.DataFrame | None]) -> dict[str, str]:
    """Write each frame (named `<table>` or `<table>/<partition>`) but None; return the inputs of a request."""
    for name, frame in frames.items():
        if frame is not None:
            write_table(frame, name.partition("/")[0], folder / name, spec_hash="s", code_version="1-s")
    return {name: str(folder / name) for name in frames}


def publish_costs(folder: Path, ablations: Mapping[str, AblationSpec], steps: int = 4) -> dict[str, str]:
    """A record of costs for each, and a model's configuration; returns their inputs."""
    folder.mkdir(parents=True)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps({**sizes, "num_key_value_heads": 2, "vocab_size": 97}))
    for name, ablation in ablations.items():
        CostRecord(
            steps=steps,
            sequences=8 * steps,
            tokens=1500 * steps,
            padded_tokens=1600 * steps,
            response_tokens=800 * steps,
            mle_tokens=800 * steps if ablation.select.by == "all" else 200 * steps,
            distilled_tokens=600 * steps if ablation.distillation else 0,
            selection=ablation.selection_kind,
            selection_needs_loss=ablation.selection_kind == "dynamic",
            teacher="mean_embeddings" if ablation.distillation else "none",
            lora_rank=32,
            attended=160_000 * steps,
            seconds=Seconds(forward=3, head=2, backward=5, teacher=0, selection=0, other=1, total=11),
        ).write(folder / name / "costs.json")
    return {"model": str(folder), **{f"costs/{name}": str(folder / name) for name in ablations}}


def joined_tokens(examples: int = 40, length: int = 25, seed: int = 0) -> pl.DataFrame:
    """Both token tables joined, from distributions that make every correlation positive."""
    draw = np.random.default_rng(seed)
    rows = examples * length
    entropy = draw.gamma(2, 1, rows)
    bald = 0.01 * entropy * draw.lognormal(0, 0.5, rows)
    return pl.DataFrame(
        {
            "example_id": [f"toy/{i // length:03d}" for i in range(rows)],
            "position": [i % length for i in range(rows)],
            "split": ["test" if i % (2 * length) < length else "train" for i in range(rows)],
            "category": [("word", "number")[i % 2] for i in range(rows)],
            "token": ["<b>x</b>"] * rows,
            "rank": [0] * rows,
            "loss": entropy + draw.exponential(1, rows),
            "entropy": entropy,
            "bald": bald,
            "expected_entropy": entropy - bald,
        }
    )
