"""Print the tables of docs/results/planted_noise.md: `python -m benchmarks.planted_noise_tables FOLDER`.

FOLDER holds what `planted_noise.py` wrote. Needs no model. Errors of each kind are compared with correct rows alone.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.planted_noise import CLEANLAB_METHODS
from benchmarks.precision_tables import table
from tokenuq_ml.scoring.suspects import AGGREGATE, AGGREGATES, TOKEN_SCORE, TOKEN_SCORES, example_scores, token_scores
from tokenuq_ml.tables.schemas import TOKEN_KEY

KINDS = {"final": "the number after `####` alone", "worked": "one step, and all numbers after it"}
TOP = 0.05
MEASURES = ("precision at 5%", "average precision", "AUROC")


class Seed:
    """The tables of one run."""

    def __init__(self, folder: Path):
        self.tokens = pl.read_parquet(folder / "tokens.parquet")
        self.planted: dict[str, str] = json.loads((folder / "planted.json").read_text())["planted"]
        cleanlab = folder / "cleanlab.parquet"
        self.cleanlab = pl.read_parquet(cleanlab) if cleanlab.exists() else None

    def measures(self, scores: pl.DataFrame, kind: str) -> tuple[float, float, float]:
        """Return the measures of `example_id, score` for the errors of a kind among correct rows."""
        rows = scores.filter(pl.col("example_id").map_elements(lambda i: self.planted.get(i, kind) == kind, pl.Boolean))
        # Shuffled, so that ties are in no order.
        rows = rows.sample(fraction=1, shuffle=True, seed=0)
        wrong = [example_id in self.planted for example_id in rows["example_id"]]
        top = rows.with_columns(wrong=pl.Series(wrong)).sort("score", descending=True).head(round(TOP * len(rows)))
        score = rows["score"].to_numpy()
        return top["wrong"].mean(), average_precision_score(wrong, score), roc_auc_score(wrong, score)

    def cleanlab_scores(self, method: str, aggregate: str) -> pl.DataFrame:
        """Return `example_id, score` of the subset; cleanlab's qualities are low for suspect labels."""
        return example_scores(self.cleanlab.select(*TOKEN_KEY, score=-pl.col(method).cast(pl.Float64)), aggregate)


def over_seeds(values: Iterable[float]) -> str:
    """Return mean and standard deviation."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def measured(seeds: list[Seed], scores: Mapping[str, list[pl.DataFrame]]) -> list[list]:
    """Return a row per name: each measure of each kind, over the seeds."""
    rows = []
    for name, frames in scores.items():
        row = [name]
        for kind in KINDS:
            found = [seed.measures(frame, kind) for seed, frame in zip(seeds, frames, strict=True)]
            row += [over_seeds(values) for values in zip(*found, strict=True)]
        rows.append(row)
    return rows


def main() -> None:
    """Run the command line."""
    seeds = [
        Seed(folder) for folder in sorted(Path(sys.argv[1]).glob("seed-*")) if (folder / "tokens.parquet").exists()
    ]
    has_bald = all("bald" in seed.tokens.columns for seed in seeds)
    names = [score for score in TOKEN_SCORES if has_bald or "bald" not in score]
    columns = ["score", *(f"{kind}: {measure}" for kind in KINDS for measure in MEASURES)]
    every = {score: [example_scores(token_scores(seed.tokens, score), AGGREGATE) for seed in seeds] for score in names}
    print(table(f"All rows, {AGGREGATE} of the tokens", columns, measured(seeds, every)))
    rows = []
    for score in names:
        row = [score]
        for kind in KINDS:
            for aggregate in AGGREGATES:
                frames = [example_scores(token_scores(seed.tokens, score), aggregate) for seed in seeds]
                row.append(over_seeds(seed.measures(frame, kind)[1] for seed, frame in zip(seeds, frames, strict=True)))
        rows.append(row)
    columns_by_aggregate = ["score", *(f"{kind}: {aggregate}" for kind in KINDS for aggregate in AGGREGATES)]
    print(table("Average precision by aggregate", columns_by_aggregate, rows))
    compared = [seed for seed in seeds if seed.cleanlab is not None]
    if not compared:
        return
    subsets = [seed.tokens.join(seed.cleanlab.select(TOKEN_KEY), on=TOKEN_KEY, how="semi") for seed in compared]
    scores = {
        f"{TOKEN_SCORE}, {AGGREGATE}": [example_scores(token_scores(subset)) for subset in subsets],
        f"margin, {AGGREGATE}": [example_scores(token_scores(subset, "margin")) for subset in subsets],
    }
    for method in CLEANLAB_METHODS:
        for aggregate in ("max", AGGREGATE):
            name = f"cleanlab {method}, {aggregate}"
            scores[name] = [seed.cleanlab_scores(method, aggregate) for seed in compared]
    print(table("The subset that cleanlab scores", columns, measured(compared, scores)))


if __name__ == "__main__":
    main()
